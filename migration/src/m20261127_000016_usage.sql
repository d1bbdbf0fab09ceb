-- What runs take, by day, step and model; and the caps of a tenant's day, which runs reserve from before a call.

create table run_usage (
  tenant_id     uuid not null references tenants,
  run_id        uuid not null,
  step_id       text not null,
  day           date not null,
  config        text not null,
  provider      text not null,
  model         text not null,
  calls         bigint not null,
  input_tokens  bigint not null,
  cached_tokens bigint not null,
  output_tokens bigint not null,
  cost          double precision not null,
  primary key (tenant_id, run_id, step_id, day, config, provider, model)
);
comment on table run_usage is 'What each step took, in the journal''s own commits. It outlives the runs.';
comment on column run_usage.day is 'In UTC.';
comment on column run_usage.config is 'The model configuration, as name@version; empty, as provider and model are, for what is no model.';
create index run_usage_by_day on run_usage (tenant_id, day);

create table usage_budgets (
  tenant_id  uuid not null references tenants,
  cost       double precision check (cost >= 0),
  tokens     bigint check (tokens >= 0),
  tool_calls bigint check (tool_calls >= 0),
  updated_by text not null,
  updated_at timestamptz not null,
  primary key (tenant_id)
);
comment on table usage_budgets is 'The most that the runs of a tenant may take together in a day (UTC); null is no bound.';

create table usage_days (
  tenant_id         uuid not null references tenants,
  day               date not null,
  spent_cost        double precision not null,
  spent_tokens      bigint not null,
  spent_tool_calls  bigint not null,
  raised_cost       double precision not null default 0,
  raised_tokens     bigint not null default 0,
  raised_tool_calls bigint not null default 0,
  primary key (tenant_id, day)
) with (fillfactor = 50);
comment on table usage_days is 'The book of a tenant''s day, opened by its first reservation; its row''s lock makes reservations wait for each other.';

create table usage_reservations (
  tenant_id  uuid not null references tenants,
  run_id     uuid not null,
  step_id    text not null,
  attempt    integer not null,
  day        date not null,
  cost       double precision not null,
  tokens     bigint not null,
  tool_calls bigint not null,
  primary key (tenant_id, run_id, step_id, attempt)
);
comment on table usage_reservations is 'What calls that are out are expected to take of their tenant''s day.';
create index usage_reservations_by_day on usage_reservations (tenant_id, day);

do $$
declare
  one text;
begin
  foreach one in array array['run_usage', 'usage_budgets', 'usage_days', 'usage_reservations'] loop
    execute format('alter table %I enable row level security', one);
    execute format('alter table %I force row level security', one);
    execute format('create policy tenant on %I to fermata_app, fermata_owner
      using (tenant_id = any ((select current_tenants())::uuid[]))
      with check (tenant_id = any ((select current_tenants())::uuid[]))', one);
  end loop;
end
$$;
grant select, insert on run_usage, usage_days to fermata_app;
grant update (calls, input_tokens, cached_tokens, output_tokens, cost) on run_usage to fermata_app;
grant update (spent_cost, spent_tokens, spent_tool_calls, raised_cost, raised_tokens, raised_tool_calls) on usage_days to fermata_app;
grant select, insert, update, delete on usage_budgets, usage_reservations to fermata_app;

-- The key of a day's lock: whoever writes usage has a share of it, whoever opens the day's book all of it, so that the
-- book begins with all that was spent, or hears of it.
create function usage_lock(tenant uuid, day date) returns bigint
  language sql immutable parallel safe
  return hashtextextended('usage ' || tenant::text || (day - date '2000-01-01')::text, 0);

-- Reserves what a call is expected to take of its tenant's day, under the lock of that day's book; the same call again has
-- what it had. Without a budget it comes back at once. Where there is no room it says which cap lacks how much.
create function reserve_usage(tenant uuid, run uuid, step text, at_attempt integer, today date, want_cost double precision,
                              want_tokens bigint, want_calls bigint,
                              out reserved boolean, out cap text, out lacks double precision)
  language plpgsql volatile
as $$
declare
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
    select coalesce(sum(o.cost), 0) as cost, coalesce(sum(o.tokens), 0) as tokens, coalesce(sum(o.tool_calls), 0) as calls
    into others from usage_reservations o
    where o.tenant_id = tenant and o.day = today and (o.run_id, o.step_id, o.attempt) <> (run, step, at_attempt);
    select c.cap, c.lacks into cap, lacks from (values
      (1, 'cost', want_cost, book.spent_cost + others.cost + want_cost - (caps.cost + book.raised_cost)),
      (2, 'tokens', want_tokens, book.spent_tokens + others.tokens + want_tokens - (caps.tokens + book.raised_tokens)),
      (3, 'toolCalls', want_calls,
       book.spent_tool_calls + others.calls + want_calls - (caps.tool_calls + book.raised_tool_calls))
    ) as c (place, cap, want, lacks)
    where c.want > 0 and c.lacks > 0 order by c.place limit 1;
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
    insert into usage_reservations (tenant_id, run_id, step_id, attempt, day, cost, tokens, tool_calls)
    values (tenant, run, step, at_attempt, today, want_cost, want_tokens, want_calls)
    on conflict (tenant_id, run_id, step_id, attempt) do update
    set day = excluded.day, cost = excluded.cost, tokens = excluded.tokens, tool_calls = excluded.tool_calls;
    reserved := true;
  else
    delete from usage_reservations o
    where o.tenant_id = tenant and o.run_id = run and o.step_id = step and o.attempt = at_attempt;
  end if;
end
$$;

-- `kind`: something was spent, an attempt is over, its run has ended, or the budget of a day was raised by `cost`.
create type usage_note as (
  tenant_id uuid, run_id uuid, step_id text, attempt integer, kind text, day date, cap text, config text, provider text,
  model text, calls bigint, input_tokens bigint, cached_tokens bigint, output_tokens bigint, cost double precision
);

create function keep_usage(moved uuid[], notes usage_note[]) returns uuid[]
  language plpgsql volatile
as $$
declare
  n usage_note;
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
        returning r.tenant_id, r.day, r.tool_calls
      )
      update usage_days d set spent_tool_calls = d.spent_tool_calls + g.tool_calls * n.calls from gone g
      where d.tenant_id = g.tenant_id and d.day = g.day;
    when 'ended' then
      delete from usage_reservations r where r.tenant_id = n.tenant_id and r.run_id = n.run_id;
    when 'raised' then
      update usage_days d
      set raised_cost = d.raised_cost + case n.cap when 'cost' then n.cost else 0 end,
          raised_tokens = d.raised_tokens + case n.cap when 'tokens' then ceil(n.cost)::bigint else 0 end,
          raised_tool_calls = d.raised_tool_calls + case n.cap when 'toolCalls' then ceil(n.cost)::bigint else 0 end
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
  foreach one in array array['usage_lock(uuid, date)', 'keep_usage(uuid[], usage_note[])',
    'reserve_usage(uuid, uuid, text, integer, date, double precision, bigint, bigint)']::regprocedure[]
  loop
    execute format('revoke all on function %s from public', one);
    execute format('grant execute on function %s to fermata_app', one);
  end loop;
end
$$;
