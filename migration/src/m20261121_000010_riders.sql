-- A change and all that follows from it as one statement: the run's own row with its first events, and after the append
-- whatever rides along (the inbox of approvals, decisions, the audit log), each by a function of its own.

-- What a run is from the beginning on; the rest of its row is the head.
create type run_opening as (
  tenant_id uuid, run_id uuid, goal text, workflow_name text, workflow_version integer, input text,
  budget double precision, on_denied text, metadata text, created_by text, parent_run_id uuid, parent_step_id text
);

-- A run that is opened where there is one of that id already has not moved: nothing of its append is written.
create function append_events(named text, openings run_opening[], heads run_head[], events run_event[], steps run_step[],
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
  c run_claim;
begin
  moved := '{}';
  taken := '{}';
  if named is not null then
    perform set_config('fermata.tenants', named, true);
  end if;
  if cardinality(heads) > cardinality(openings) then
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
alter function append_events(text, run_opening[], run_head[], run_event[], run_step[], run_claim[]) owner to fermata_owner;
revoke all on function append_events(text, run_opening[], run_head[], run_event[], run_step[], run_claim[]) from public;
grant execute on function append_events(text, run_opening[], run_head[], run_event[], run_step[], run_claim[]) to fermata_app;

-- The events that shape a run, read after its head was locked: a function sees what is committed by then, where the rest
-- of the statement sees what was when it began.
create function run_past(tenant uuid, run uuid, out seqs bigint[], out texts text[])
  language plpgsql volatile
as $$
begin
  select array_agg(e.seq), array_agg(e.data) into seqs, texts
  from (
    select seq, data::text from run_events
    where tenant_id = tenant and run_id = run and name <> 'tool.progress' order by seq
  ) e;
end
$$;
revoke all on function run_past(uuid, uuid) from public;
grant execute on function run_past(uuid, uuid) to fermata_app;

-- What only the append writes is right without being looked at again, each time: its numbers and words come from types
-- that have no others, a claim from a run it has just moved, and an audit entry's tenant from the policies.
alter table runs drop constraint runs_status_check, drop constraint runs_last_seq_check;
alter table run_events drop constraint run_events_seq_check;
alter table run_leases drop constraint run_leases_tenant_id_run_id_fkey;
alter table audit_log drop constraint audit_log_tenant_id_fkey;

-- For servers of the version before, until they are replaced.
create or replace function append_events(named text, heads run_head[], events run_event[], steps run_step[], claims run_claim[])
  returns table (moved uuid[], taken uuid[])
  language sql volatile security definer
  set search_path = pg_catalog, public, pg_temp
as $$ select moved, taken from append_events(named, '{}', heads, events, steps, claims) $$;

-- What rides along is given the runs that moved, and hands them on to the next. With the caller's rights.

create type approval_asked as (
  tenant_id uuid, run_id uuid, approval_id uuid, step_id text, attempt integer, question text, action text,
  tool_version text, arguments text, digest text, cost_estimate double precision, reason text, scope text[],
  requires text[], self_approval boolean, asked_at timestamptz, expires_at timestamptz
);
create function ask_approvals(moved uuid[], asked approval_asked[]) returns uuid[]
  language plpgsql volatile
as $$
begin
  insert into approvals (tenant_id, approval_id, run_id, step_id, attempt, question, status, action, tool_version,
                         arguments, digest, cost_estimate, reason, scope, requires, self_approval, asked_by, asked_at,
                         expires_at)
  select a.tenant_id, a.approval_id, a.run_id, a.step_id, a.attempt, a.question, 'pending', a.action, a.tool_version,
         a.arguments::json, a.digest, a.cost_estimate, a.reason, to_jsonb(a.scope), to_jsonb(a.requires),
         a.self_approval, (select r.created_by from runs r where r.tenant_id = a.tenant_id and r.run_id = a.run_id),
         a.asked_at, a.expires_at
  from unnest(asked) a where a.run_id = any (moved);
  return moved;
end
$$;

create type approval_settled as (
  tenant_id uuid, run_id uuid, approval_id uuid, status text, decided_by text, decided_at timestamptz
);
create function settle_approvals(moved uuid[], settled approval_settled[]) returns uuid[]
  language plpgsql volatile
as $$
declare
  s approval_settled;
begin
  foreach s in array settled loop
    continue when s.run_id <> all (moved);
    update approvals a set status = s.status, decided_by = s.decided_by, decided_at = s.decided_at
    where a.tenant_id = s.tenant_id and a.approval_id = s.approval_id and a.status = 'pending';
    if not found then
      raise exception 'approval % is not pending in the table, though it is in the journal', s.approval_id;
    end if;
  end loop;
  return moved;
end
$$;

create type approval_said as (
  tenant_id uuid, run_id uuid, approval_id uuid, decided_by text, status text, reason text, digest text,
  claimed_at timestamptz, decided_at timestamptz
);
create function record_decisions(moved uuid[], said approval_said[]) returns uuid[]
  language plpgsql volatile
as $$
begin
  insert into approval_decisions (tenant_id, approval_id, decided_by, status, reason, digest, claimed_at, decided_at)
  select s.tenant_id, s.approval_id, s.decided_by, s.status, s.reason, s.digest, s.claimed_at, s.decided_at
  from unnest(said) s where s.run_id = any (moved);
  return moved;
end
$$;

-- `mover` is the run whose append the entry is about; null for a deed that is no append.
create type audit_entry as (
  mover uuid, tenant_id uuid, audit_id uuid, at timestamptz, actor text, action text, target text, detail text, request_id text
);
create function record_audit(moved uuid[], entries audit_entry[]) returns uuid[]
  language plpgsql volatile
as $$
begin
  insert into audit_log (tenant_id, audit_id, at, actor, action, target, detail, request_id)
  select e.tenant_id, e.audit_id, e.at, e.actor, e.action, e.target, e.detail::jsonb, e.request_id
  from unnest(entries) e where e.mover is null or e.mover = any (moved);
  return moved;
end
$$;

do $$
declare
  one regprocedure;
begin
  foreach one in array array['ask_approvals(uuid[], approval_asked[])', 'settle_approvals(uuid[], approval_settled[])',
                             'record_decisions(uuid[], approval_said[])', 'record_audit(uuid[], audit_entry[])']::regprocedure[]
  loop
    execute format('revoke all on function %s from public', one);
    execute format('grant execute on function %s to fermata_app', one);
  end loop;
end
$$;
