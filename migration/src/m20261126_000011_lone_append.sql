-- An append of a step writes its run's head and its events, and nothing else. How a step stands is in the events, which
-- is where everything about a run is read; a row is left for the one thing that is not in them.
comment on table run_steps is
  'Of the steps whose output is too large for its event, that output. How steps stand is in the events.';
comment on column run_steps.output is 'The whole output.';

create or replace function append_events(named text, openings run_opening[], heads run_head[], events run_event[], steps run_step[],
                              claims run_claim[])
  returns table (moved uuid[], taken uuid[])
  language plpgsql volatile security definer
  set search_path = pg_catalog, public, pg_temp
  -- The plans are the same for any list: they are not made anew for each. And they go by keys, row by row in the order
  -- of the list: joined by hash, a plan made while the table was small reads all of a tenant's rows, and two writers
  -- could lock the same heads in different orders.
  set plan_cache_mode = force_generic_plan
  set enable_hashjoin = off
  set enable_mergejoin = off
  set enable_seqscan = off
  set enable_bitmapscan = off
as $$
declare
  this bigint := pg_current_xact_id()::text;
  xacts bigint[] := '{}';
  opened uuid[];
  alone run_head;
  c run_claim;
begin
  moved := '{}';
  taken := '{}';
  if named is not null then
    perform set_config('fermata.tenants', named, true);
  end if;
  if cardinality(heads) = 1 and openings = '{}' then
    -- Alone, it goes without a list: there is less to begin and to end.
    alone := heads[1];
    update runs r
    set status = alone.status, last_seq = alone.last_seq, last_xact = greatest(r.last_xact, this), cost = alone.cost,
        error = alone.error::json, plan = coalesce(alone.plan::json, r.plan), output = coalesce(alone.output::json, r.output),
        pending_approvals = alone.pending, updated_at = alone.at, finished_at = case when alone.ended then alone.at end
    where r.tenant_id = alone.tenant_id and r.run_id = alone.run_id and r.last_seq = alone.expected
    returning array[r.run_id], array[r.last_xact] into moved, xacts;
    moved := coalesce(moved, '{}');
  elsif cardinality(heads) > cardinality(openings) then
    with written as (
      update runs r
      set status = h.status, last_seq = h.last_seq, last_xact = greatest(r.last_xact, this), cost = h.cost,
          error = h.error::json, plan = coalesce(h.plan::json, r.plan), output = coalesce(h.output::json, r.output),
          pending_approvals = h.pending, updated_at = h.at, finished_at = case when h.ended then h.at end
      from unnest(heads) h
      where r.tenant_id = h.tenant_id and r.run_id = h.run_id and r.last_seq = h.expected
      returning r.run_id, r.last_xact
    )
    select coalesce(array_agg(w.run_id), '{}'), array_agg(w.last_xact) into moved, xacts from written w;
  end if;
  if cardinality(openings) > 0 then
    with written as (
      insert into runs (tenant_id, run_id, status, last_seq, last_xact, goal, workflow_name, workflow_version, plan, input,
                        output, error, pending_approvals, cost, budget, on_denied, metadata, created_by, parent_run_id,
                        parent_step_id, created_at, updated_at, finished_at)
      select o.tenant_id, o.run_id, h.status, h.last_seq, this, o.goal, o.workflow_name, o.workflow_version,
             h.plan::json, o.input::json, h.output::json, h.error::json, h.pending, h.cost, o.budget, o.on_denied,
             o.metadata::json, o.created_by, o.parent_run_id, o.parent_step_id, h.at, h.at,
             case when h.ended then h.at end
      from unnest(openings) o join unnest(heads) h using (tenant_id, run_id)
      on conflict (tenant_id, run_id) do nothing
      returning run_id
    )
    select coalesce(array_agg(w.run_id), '{}') into opened from written w;
    moved := moved || opened;
    xacts := xacts || array_fill(this, array[cardinality(opened)]);
  end if;
  if moved = '{}' then
    return next;
    return;
  end if;
  if cardinality(heads) = 1 then
    insert into run_events (tenant_id, run_id, seq, xact, name, data)
    select e.tenant_id, e.run_id, e.seq, xacts[1], e.name, e.data::json from unnest(events) e
    where e.run_id = moved[1];
  else
    insert into run_events (tenant_id, run_id, seq, xact, name, data)
    select e.tenant_id, e.run_id, e.seq, m.xact, e.name, e.data::json
    from unnest(events) e join unnest(moved, xacts) as m (run_id, xact) using (run_id);
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

-- Servers of the version before have the one above, and write a row for each step until they are replaced.
drop function append_events(text, run_head[], run_event[], run_step[], run_claim[]);
