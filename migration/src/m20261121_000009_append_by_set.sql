-- The append by sets, and without a look at the run for each of its rows.

-- A third of an append went into finding the run that each event and step refers to. In place of the foreign keys,
-- nothing but the append may write the two tables: it has just moved the head of that very run. It has the owner's
-- rights for that, whom the tenants' policies bind as they bind the server.
alter table run_events drop constraint run_events_tenant_id_run_id_fkey;
alter table run_steps drop constraint run_steps_tenant_id_run_id_fkey;
revoke insert on run_events, run_steps from fermata_app;
revoke update on run_steps from fermata_app;

-- A transaction may have had its number before it had the run's lock, and then write after one with a higher number. Its
-- events count as that one's, so that a run's events stay in order in the stream of its tenant.
alter table runs add column last_xact bigint not null default 0;
comment on column runs.last_xact is 'The highest transaction that wrote events of the run.';
comment on column run_events.xact is
  'The writing transaction, or the run''s last if that was later: orders the tenant-wide stream by commit horizon.';

-- A head is written at every append, and its plan once: kept apart, it is not copied, and logged, each time.
alter table runs set (toast_tuple_target = 512);

create or replace function append_events(named text, heads run_head[], events run_event[], steps run_step[], claims run_claim[])
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
  xacts bigint[];
  c run_claim;
begin
  taken := '{}';
  if named is not null then
    perform set_config('fermata.tenants', named, true);
  end if;
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
  if moved = '{}' then
    return next;
    return;
  end if;
  insert into run_events (tenant_id, run_id, seq, xact, name, data)
  select e.tenant_id, e.run_id, e.seq, m.xact, e.name, e.data::json
  from unnest(events) e join unnest(moved, xacts) as m (run_id, xact) using (run_id);
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
alter function append_events(text, run_head[], run_event[], run_step[], run_claim[]) owner to fermata_owner;
