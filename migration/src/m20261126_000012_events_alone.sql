-- An append of steps writes events, and nothing else: the head of a run moves when something that it shows changes. How far
-- a run is, and when it moved last, is in its events, where all the rest of it is.
--
-- The fence is the events' own key: an append continues the very event it names, or is undone. Whoever writes a run keeps
-- others out by a lock on its id, since its head's row may stay as it is. Servers of the version before do not know
-- either: until they are replaced, they are refused (and undone, never half done) where a run has gone on without its head.

-- The key of a run's lock.
create function run_lock(run uuid) returns bigint
  language sql immutable parallel safe
  return hashtextextended(run::text, 0);

-- As an expression, which the planner puts in the place of the call: each policy asks for it in each statement.
create function refuse_unnamed() returns uuid[]
  language plpgsql stable parallel safe
  set search_path = pg_catalog
as $$
begin
  raise exception 'no tenant is set for this transaction' using errcode = 'insufficient_privilege';
end
$$;
create or replace function current_tenants() returns uuid[]
  language sql stable parallel safe
  return case
    when coalesce(current_setting('fermata.tenants', true), '') = '' then refuse_unnamed()
    else string_to_array(current_setting('fermata.tenants', true), ',')::uuid[]
  end;
revoke all on function run_lock(uuid), refuse_unnamed() from public;
grant execute on function run_lock(uuid) to fermata_app, fermata_owner, fermata_system;
grant execute on function refuse_unnamed() to fermata_app, fermata_owner;

comment on table runs is 'One row a run: its head. The events are the truth; this row is what lists need.';
comment on column runs.last_seq is 'The last event when the head moved last; the run may have gone on since.';
comment on column runs.last_xact is 'Of servers of the version before.';
comment on column runs.updated_at is 'When the head moved last; the run may have gone on since.';

-- `leads`: the first one of its append, which continues the event before it.
create type run_next as (tenant_id uuid, run_id uuid, seq bigint, leads boolean, name text, data text);

-- Continues the runs, and returns those it wrote and those whose claim it gave to a worker. A run that does not stand
-- where its append expects it undoes all of it, as a breach of the events' key. A run that is opened where there is one
-- of that id already has not moved: nothing of its append is written.
create function append_events(named text, runs uuid[], openings run_opening[], heads run_head[], events run_next[],
                              steps run_step[], claims run_claim[])
  returns table (moved uuid[], taken uuid[])
  language plpgsql volatile security definer
  set search_path = pg_catalog, public, pg_temp
  -- The plans are the same for any list: they are not made anew for each. And they go by keys, row by row in the order
  -- of the list: joined by hash, a plan made while the table was small reads all of a tenant's rows.
  set plan_cache_mode = force_generic_plan
  set enable_hashjoin = off
  set enable_mergejoin = off
  set enable_seqscan = off
  set enable_bitmapscan = off
as $$
declare
  this bigint := pg_current_xact_id()::text;
  changed bigint;
  -- Runs whose rows are written here, so that they are there; those that are to be opened, and were.
  there uuid[] := '{}';
  wanted uuid[] := '{}';
  opened uuid[] := '{}';
  one uuid;
  o run_opening;
  head run_head;
  c run_claim;
  -- What is assigned is evaluated without a query, which is ten times as quick.
  names text;
  held boolean;
begin
  taken := '{}';
  moved := runs;
  if named is not null then
    names := set_config('fermata.tenants', named, true);
  end if;
  -- One order for all, so that two writers cannot wait for each other.
  foreach one in array runs loop
    held := pg_advisory_xact_lock(run_lock(one)) is null;
  end loop;
  if named is null and cardinality(runs) > cardinality(openings) then
    -- This transaction may have begun before the one that wrote the event before.
    this := greatest(this, (
      select max(p.xact) from unnest(events) e
      join run_events p on p.tenant_id = e.tenant_id and p.run_id = e.run_id and p.seq = e.seq - 1
      where e.leads));
  end if;
  foreach head in array heads loop
    there := there || head.run_id;
    continue when head.last_seq > head.expected;
    -- Of an append without events nothing else would tell that its run has gone on.
    perform from run_events n
    where n.tenant_id = head.tenant_id and n.run_id = head.run_id and n.seq = head.expected + 1;
    if found then
      raise unique_violation using message = 'a run has gone on', constraint = 'run_events_pkey';
    end if;
  end loop;
  foreach o in array openings loop
    wanted := wanted || o.run_id;
  end loop;
  if cardinality(heads) > cardinality(openings) then
    update runs r
    set status = h.status, last_seq = h.last_seq, cost = h.cost, error = h.error::json,
        plan = coalesce(h.plan::json, r.plan), output = coalesce(h.output::json, r.output),
        pending_approvals = h.pending, updated_at = h.at, finished_at = case when h.ended then h.at end
    from unnest(heads) h
    where r.tenant_id = h.tenant_id and r.run_id = h.run_id and h.run_id <> all (wanted)
      -- Retention may have begun with a run that has ended: then its events would not tell.
      and r.last_seq <= h.expected;
    get diagnostics changed = row_count;
    if changed < cardinality(heads) - cardinality(openings) then
      raise unique_violation using message = 'a run has gone on', constraint = 'run_events_pkey';
    end if;
  end if;
  if cardinality(openings) > 0 then
    with written as (
      insert into runs (tenant_id, run_id, status, last_seq, last_xact, goal, workflow_name, workflow_version, plan, input,
                        output, error, pending_approvals, cost, budget, on_denied, metadata, created_by, parent_run_id,
                        parent_step_id, created_at, updated_at, finished_at)
      select a.tenant_id, a.run_id, h.status, h.last_seq, this, a.goal, a.workflow_name, a.workflow_version,
             h.plan::json, a.input::json, h.output::json, h.error::json, h.pending, h.cost, a.budget, a.on_denied,
             a.metadata::json, a.created_by, a.parent_run_id, a.parent_step_id, h.at, h.at,
             case when h.ended then h.at end
      from unnest(openings) a join unnest(heads) h using (tenant_id, run_id)
      on conflict (tenant_id, run_id) do nothing
      returning run_id
    )
    select coalesce(array_agg(w.run_id), '{}') into opened from written w;
    moved := array(select m from unnest(runs) m where m = any (opened) or m <> all (wanted));
    events := array(select e from unnest(events) e where e.run_id = any (moved));
  end if;
  insert into run_events (tenant_id, run_id, seq, xact, name, data)
  select e.tenant_id, e.run_id, e.seq, this, e.name, e.data::json
  from unnest(events) e
  where not e.leads or e.run_id = any (there)
     or (select p.seq from run_events p
         where p.tenant_id = e.tenant_id and p.run_id = e.run_id and p.seq = e.seq - 1) is not null;
  get diagnostics changed = row_count;
  if changed < cardinality(events) then
    raise unique_violation using message = 'a run is not there', constraint = 'run_events_pkey';
  end if;
  if cardinality(steps) > 0 then
    insert into run_steps as s (tenant_id, run_id, step_id, status, attempt, tool, arguments, output, error,
                                started_at, finished_at, updated_at)
    select a.tenant_id, a.run_id, a.step_id, a.status, a.attempt, a.tool, a.arguments::json, a.output::json,
           a.error::json, a.started_at, a.finished_at, a.at
    from unnest(steps) a where a.run_id = any (moved)
    on conflict (tenant_id, run_id, step_id) do update
    set status = excluded.status, attempt = excluded.attempt, error = excluded.error,
        arguments = coalesce(excluded.arguments, s.arguments), output = coalesce(excluded.output, s.output),
        started_at = coalesce(s.started_at, excluded.started_at), finished_at = excluded.finished_at,
        updated_at = excluded.updated_at;
  end if;
  foreach c in array claims loop
    continue when c.mover <> all (moved);
    if c.settle = 'take' then
      -- Unless somebody has it, or the worker was given up for dead.
      insert into run_leases as l (tenant_id, run_id, worker_id, epoch)
      select c.tenant_id, c.run_id, w.worker_id, 1 from workers w where w.worker_id = c.worker_id for key share
      on conflict (tenant_id, run_id) do update
      set worker_id = excluded.worker_id, epoch = l.epoch + 1, due_at = null where l.worker_id is null;
      if found then
        taken := taken || c.run_id;
        continue;
      end if;
    end if;
    case c.settle
    when 'release' then
      -- A wake-up that came while the run was claimed is in `due_at` and must outlive the release.
      update run_leases l set worker_id = null, due_at = least(l.due_at, c.due_at)
      where l.tenant_id = c.tenant_id and l.run_id = c.run_id and l.worker_id = c.worker_id;
    when 'nudge' then
      update run_leases l set due_at = least(l.due_at, c.due_at)
      where l.tenant_id = c.tenant_id and l.run_id = c.run_id;
    when 'due', 'take' then
      insert into run_leases as l (tenant_id, run_id, due_at) values (c.tenant_id, c.run_id, c.due_at)
      on conflict (tenant_id, run_id) do update set due_at = least(l.due_at, excluded.due_at);
    when 'end' then
      delete from run_leases l where l.tenant_id = c.tenant_id and l.run_id = c.run_id;
    end case;
  end loop;
  return next;
end
$$;
comment on function append_events(text, uuid[], run_opening[], run_head[], run_next[], run_step[], run_claim[]) is
  'The journal''s append: what the next events of many runs change, at once or not at all.';
alter function append_events(text, uuid[], run_opening[], run_head[], run_next[], run_step[], run_claim[]) owner to fermata_owner;
revoke all on function append_events(text, uuid[], run_opening[], run_head[], run_next[], run_step[], run_claim[]) from public;
grant execute on function append_events(text, uuid[], run_opening[], run_head[], run_next[], run_step[], run_claim[])
  to fermata_app;

-- The events that shape a run (reports of progress are left out), its first one and its last; read, where `locked` says
-- so, once nobody else can write it: a function sees what is committed by then, where the rest of the statement sees what
-- was when it began.
create function run_past(tenant uuid, run uuid, locked boolean, out first bigint, out last bigint, out texts text[])
  language plpgsql volatile
  -- By the key, which has the order: while the table has no statistics, a look at all of the tenant's seems as cheap.
  set enable_sort = off
  set enable_bitmapscan = off
  set enable_seqscan = off
as $$
begin
  if locked then
    perform pg_advisory_xact_lock(run_lock(run));
  end if;
  select min(e.seq), max(e.seq), array_agg(e.data::text) filter (where e.name <> 'tool.progress')
  into first, last, texts
  from (select seq, name, data from run_events where tenant_id = tenant and run_id = run order by seq) e;
end
$$;
revoke all on function run_past(uuid, uuid, boolean) from public;
grant execute on function run_past(uuid, uuid, boolean) to fermata_app;

-- Of a small table a twentieth is new every few seconds, and there is nothing to clean up in it.
alter table run_events set (autovacuum_vacuum_insert_threshold = 250000);

grant create on schema public to fermata_system;
create or replace function forget_runs(ended_before timestamptz, most bigint) returns bigint
  language plpgsql volatile security definer
  set search_path = pg_catalog, public, pg_temp
as $$
declare
  run record;
  newest record;
  ids uuid[];
  found_rows bigint;
  dropped bigint := 0;
  gaps stream_gaps[] := '{}';
begin
  -- Several processes at it would only wait for each other.
  if not pg_try_advisory_xact_lock(hashtextextended('forget_runs', 0)) then
    return 0;
  end if;
  for run in
    select r.tenant_id, r.run_id from runs r
    where r.finished_at < ended_before
      and not exists (select from runs c where c.tenant_id = r.tenant_id and c.parent_run_id = r.run_id)
      and not exists (select from runs p where p.tenant_id = r.tenant_id and p.run_id = r.parent_run_id
                      and p.finished_at is null)
      and not exists (select from run_leases l where l.tenant_id = r.tenant_id and l.run_id = r.run_id)
    order by r.finished_at limit most
    for update of r skip locked
  loop
    -- A run that is locked just now is somebody's retry.
    continue when not pg_try_advisory_xact_lock(run_lock(run.run_id));
    with gone as (
      delete from run_events e
      where e.tenant_id = run.tenant_id and e.run_id = run.run_id
        and e.seq < most - dropped + (select min(f.seq) from run_events f
                                      where f.tenant_id = run.tenant_id and f.run_id = run.run_id)
      returning e.xact, e.seq
    )
    select g.xact, g.seq, count(*) over () as events into newest from gone g order by g.xact desc, g.seq desc limit 1;
    if found then
      gaps := gaps || row(run.tenant_id, newest.xact, run.run_id, newest.seq)::stream_gaps;
      dropped := dropped + newest.events;
    end if;

    delete from run_steps s
    where s.tenant_id = run.tenant_id and s.run_id = run.run_id
      and s.step_id in (select t.step_id from run_steps t
                        where t.tenant_id = run.tenant_id and t.run_id = run.run_id limit most - dropped);
    get diagnostics found_rows = row_count;
    dropped := dropped + found_rows;

    ids := array(select a.approval_id from approvals a
                 where a.tenant_id = run.tenant_id and a.run_id = run.run_id limit most - dropped);
    delete from approval_decisions d where d.tenant_id = run.tenant_id and d.approval_id = any (ids);
    delete from approvals a where a.tenant_id = run.tenant_id and a.approval_id = any (ids);
    dropped := dropped + cardinality(ids);

    exit when dropped >= most;
    delete from runs r where r.tenant_id = run.tenant_id and r.run_id = run.run_id;
    dropped := dropped + 1;
  end loop;
  insert into stream_gaps as known
  select distinct on (g.tenant_id) g.* from unnest(gaps) g order by g.tenant_id, g.xact desc, g.run_id desc, g.seq desc
  on conflict (tenant_id) do update set xact = excluded.xact, run_id = excluded.run_id, seq = excluded.seq
  where (known.xact, known.run_id, known.seq) < (excluded.xact, excluded.run_id, excluded.seq);
  return dropped;
end
$$;
revoke create on schema public from fermata_system;
