-- The time that calls take counts for a tenant's day as well.
alter table usage_budgets add column wall_time double precision check (wall_time > 0);
comment on column usage_budgets.wall_time is 'Seconds, as everywhere here.';
alter table usage_days
  add column spent_wall_time double precision not null default 0,
  add column raised_wall_time double precision not null default 0;
alter table usage_reservations add column since timestamptz;
comment on column usage_reservations.since is 'Since when the call takes time; null while it waits for a person.';
grant update (spent_wall_time, raised_wall_time) on usage_days to fermata_app;

-- Servers of the version before go on with the type and the functions that they know, until they are replaced.

-- How long a call has been taking time by then; the clocks of two servers may differ.
create function usage_seconds(since timestamptz, at timestamptz) returns double precision
  language sql immutable parallel safe
  return coalesce(greatest(extract(epoch from at - since), 0), 0);

-- Reserves what a call is expected to take of its tenant's day, under the lock of that day's book; the same call again has
-- what it had. Without a budget it comes back at once. Where there is no room it says which cap lacks how much. Nobody knows
-- how long a call will take: there is time while what all calls took, those that are out as well, is below the cap.
create function reserve_usage(tenant uuid, run uuid, step text, at_attempt integer, at timestamptz,
                              want_cost double precision, want_tokens bigint, want_calls bigint,
                              out reserved boolean, out cap text, out lacks double precision)
  language plpgsql volatile
as $$
declare
  today constant date := (at at time zone 'UTC')::date;
  caps usage_budgets;
  book usage_days;
  others record;
  forgotten bigint;
begin
  reserved := false;
  select * into caps from usage_budgets b where b.tenant_id = tenant;
  if not found then
    return;
  end if;
  select * into book from usage_days d where d.tenant_id = tenant and d.day = today for update;
  if not found then
    perform pg_advisory_xact_lock(usage_lock(tenant, today));
    insert into usage_days (tenant_id, day, spent_cost, spent_tokens, spent_tool_calls)
    select tenant, today, coalesce(sum(u.cost), 0), coalesce(sum(u.input_tokens + u.output_tokens), 0), 0
    from run_usage u where u.tenant_id = tenant and u.day = today
    on conflict do nothing;
    select * into book from usage_days d where d.tenant_id = tenant and d.day = today for update;
  end if;
  loop
    select coalesce(sum(o.cost), 0) as cost, coalesce(sum(o.tokens), 0) as tokens, coalesce(sum(o.tool_calls), 0) as calls,
           coalesce(sum(usage_seconds(o.since, at)), 0) as seconds
    into others from usage_reservations o
    where o.tenant_id = tenant and o.day = today and (o.run_id, o.step_id, o.attempt) <> (run, step, at_attempt);
    select c.cap, case c.cap when 'wallTime' then ceil(c.lacks + caps.wall_time) else c.lacks end into cap, lacks from (values
      (1, 'cost', want_cost, book.spent_cost + others.cost + want_cost - (caps.cost + book.raised_cost)),
      (2, 'tokens', want_tokens, book.spent_tokens + others.tokens + want_tokens - (caps.tokens + book.raised_tokens)),
      (3, 'toolCalls', want_calls,
       book.spent_tool_calls + others.calls + want_calls - (caps.tool_calls + book.raised_tool_calls)),
      (4, 'wallTime', 1, book.spent_wall_time + others.seconds - (caps.wall_time + book.raised_wall_time))
    ) as c (place, cap, want, lacks)
    where c.want > 0 and (c.lacks > 0 or c.cap = 'wallTime' and c.lacks = 0) order by c.place limit 1;
    exit when cap is null;
    -- A process may have died before it began what it had reserved for, and the run may have ended without it.
    delete from usage_reservations o
    where o.tenant_id = tenant and o.day = today
      and not exists (select from runs r where r.tenant_id = o.tenant_id and r.run_id = o.run_id
                      and r.status not in ('completed', 'failed', 'cancelled'));
    get diagnostics forgotten = row_count;
    exit when forgotten = 0;
  end loop;
  if cap is null then
    insert into usage_reservations (tenant_id, run_id, step_id, attempt, day, cost, tokens, tool_calls, since)
    values (tenant, run, step, at_attempt, today, want_cost, want_tokens, want_calls, at)
    on conflict (tenant_id, run_id, step_id, attempt) do update
    set day = excluded.day, cost = excluded.cost, tokens = excluded.tokens, tool_calls = excluded.tool_calls,
        since = excluded.since;
    reserved := true;
  else
    delete from usage_reservations o
    where o.tenant_id = tenant and o.run_id = run and o.step_id = step and o.attempt = at_attempt;
  end if;
end
$$;

-- `kind`: something was spent, an attempt is over or waits for a person, its run has ended, or the budget of a day was raised
-- by `cost`.
create type usage_entry as (
  tenant_id uuid, run_id uuid, step_id text, attempt integer, kind text, day date, cap text, config text, provider text,
  model text, calls bigint, input_tokens bigint, cached_tokens bigint, output_tokens bigint, cost double precision, at timestamptz
);

create function keep_usage(moved uuid[], notes usage_entry[]) returns uuid[]
  language plpgsql volatile
as $$
declare
  n usage_entry;
begin
  -- First all the locks, in one order for all: a share of each day's, then the books that are open.
  for n in
    select distinct on (s.tenant_id, s.day) s.* from unnest(notes) s
    where s.kind = 'spent' and s.run_id = any (moved) order by s.tenant_id, s.day
  loop
    perform pg_advisory_xact_lock_shared(usage_lock(n.tenant_id, n.day));
  end loop;
  perform from usage_days d
  where (d.tenant_id, d.day) in (
    select s.tenant_id, s.day from unnest(notes) s where s.kind in ('spent', 'raised')
    union all
    select r.tenant_id, r.day from unnest(notes) s
    join usage_reservations r on r.tenant_id = s.tenant_id and r.run_id = s.run_id where s.kind <> 'raised'
  )
  order by d.tenant_id, d.day for update;

  foreach n in array notes loop
    continue when n.run_id <> all (moved);
    case n.kind
    when 'spent' then
      insert into run_usage as u (tenant_id, run_id, step_id, day, config, provider, model, calls, input_tokens,
                                  cached_tokens, output_tokens, cost)
      values (n.tenant_id, n.run_id, n.step_id, n.day, n.config, n.provider, n.model, n.calls, n.input_tokens,
              n.cached_tokens, n.output_tokens, n.cost)
      on conflict (tenant_id, run_id, step_id, day, config, provider, model) do update
      set calls = u.calls + excluded.calls, input_tokens = u.input_tokens + excluded.input_tokens,
          cached_tokens = u.cached_tokens + excluded.cached_tokens,
          output_tokens = u.output_tokens + excluded.output_tokens, cost = u.cost + excluded.cost;
      -- Of the day that it was reserved from, be it over or not.
      update usage_days d
      set spent_cost = d.spent_cost + n.cost, spent_tokens = d.spent_tokens + n.input_tokens + n.output_tokens
      where d.tenant_id = n.tenant_id and d.day = coalesce(
        (select r.day from usage_reservations r where r.tenant_id = n.tenant_id and r.run_id = n.run_id
           and r.step_id = n.step_id and r.attempt = n.attempt), n.day);
    when 'over' then
      with gone as (
        delete from usage_reservations r
        where r.tenant_id = n.tenant_id and r.run_id = n.run_id and r.step_id = n.step_id and r.attempt = n.attempt
        returning r.tenant_id, r.day, r.tool_calls, r.since
      )
      update usage_days d
      set spent_tool_calls = d.spent_tool_calls + g.tool_calls * n.calls,
          spent_wall_time = d.spent_wall_time + usage_seconds(g.since, n.at)
      from gone g where d.tenant_id = g.tenant_id and d.day = g.day;
    when 'held' then
      update usage_days d set spent_wall_time = d.spent_wall_time + usage_seconds(r.since, n.at) from usage_reservations r
      where r.tenant_id = n.tenant_id and r.run_id = n.run_id and r.step_id = n.step_id and r.attempt = n.attempt
        and d.tenant_id = r.tenant_id and d.day = r.day;
      update usage_reservations r set since = null
      where r.tenant_id = n.tenant_id and r.run_id = n.run_id and r.step_id = n.step_id and r.attempt = n.attempt;
    when 'ended' then
      with gone as (
        delete from usage_reservations r where r.tenant_id = n.tenant_id and r.run_id = n.run_id
        returning r.tenant_id, r.day, r.since
      ), took as (
        select g.tenant_id, g.day, sum(usage_seconds(g.since, n.at)) as seconds from gone g group by g.tenant_id, g.day
      )
      update usage_days d set spent_wall_time = d.spent_wall_time + t.seconds
      from took t where d.tenant_id = t.tenant_id and d.day = t.day;
    when 'raised' then
      update usage_days d
      set raised_cost = d.raised_cost + case n.cap when 'cost' then n.cost else 0 end,
          raised_tokens = d.raised_tokens + case n.cap when 'tokens' then ceil(n.cost)::bigint else 0 end,
          raised_tool_calls = d.raised_tool_calls + case n.cap when 'toolCalls' then ceil(n.cost)::bigint else 0 end,
          raised_wall_time = d.raised_wall_time + case n.cap when 'wallTime' then n.cost else 0 end
      where d.tenant_id = n.tenant_id and d.day = n.day;
    end case;
  end loop;
  return moved;
end
$$;

do $$
declare
  one regprocedure;
begin
  foreach one in array array['usage_seconds(timestamptz, timestamptz)', 'keep_usage(uuid[], usage_entry[])',
    'reserve_usage(uuid, uuid, text, integer, timestamptz, double precision, bigint, bigint)']::regprocedure[]
  loop
    execute format('revoke all on function %s from public', one);
    execute format('grant execute on function %s to fermata_app', one);
  end loop;
end
$$;
