-- The journal's append as one call, so that a shared commit of many runs is one round trip.

-- As a plain expression, which the planner puts where it is called; the refusal is a function apart.
create function no_tenant() returns uuid[]
  language plpgsql stable parallel safe
as $$ begin raise exception 'no tenant is set for this transaction' using errcode = 'insufficient_privilege'; end $$;
comment on function no_tenant() is 'The error of a transaction that names no tenant.';
revoke all on function no_tenant() from public;
grant execute on function no_tenant() to fermata_app, fermata_owner;
create or replace function current_tenants() returns uuid[]
  language sql stable parallel safe
as $$
  select coalesce(string_to_array(nullif(current_setting('fermata.tenants', true), ''), ',')::uuid[], public.no_tenant())
$$;

create type run_head as (
  tenant_id uuid, run_id uuid, expected bigint, last_seq bigint, status text, ended boolean, pending uuid[],
  cost double precision, plan text, output text, error text, at timestamptz
);
create type run_event as (tenant_id uuid, run_id uuid, seq bigint, name text, data text);
create type run_step as (
  tenant_id uuid, run_id uuid, step_id text, status text, attempt integer, tool text, arguments text, output text,
  error text, started_at timestamptz, finished_at timestamptz, at timestamptz
);
-- `mover` is the run whose append settles the claim: the run itself or, for a parent, the child that ended.
create type run_claim as (tenant_id uuid, run_id uuid, mover uuid, settle text, worker_id uuid, due_at timestamptz);

-- Writes what stands on the head it expects, and returns the runs it wrote, and those whose claim it gave to a worker.
-- Runs with the caller's rights, under the policies of the tenants named: by `named`, or, where that is null, by the
-- transaction it is part of.
create function append_events(named text, heads run_head[], events run_event[], steps run_step[], claims run_claim[])
  returns table (moved uuid[], taken uuid[])
  language plpgsql volatile
  -- The plans are the same for any list: they are not made anew for each.
  set plan_cache_mode = force_generic_plan
as $$
declare
  h run_head;
  c run_claim;
begin
  moved := '{}';
  taken := '{}';
  if named is not null then
    perform set_config('fermata.tenants', named, true);
  end if;
  -- One row at a time by its key: joined with a list, a plan made while the table was small reads all of a tenant's.
  foreach h in array heads loop
    update runs r
    set status = h.status, last_seq = h.last_seq, cost = h.cost, error = h.error::json,
        plan = coalesce(h.plan::json, r.plan), output = coalesce(h.output::json, r.output),
        pending_approvals = h.pending, updated_at = h.at, finished_at = case when h.ended then h.at end
    where r.tenant_id = h.tenant_id and r.run_id = h.run_id and r.last_seq = h.expected;
    if found then
      moved := moved || h.run_id;
    end if;
  end loop;
  if moved = '{}' then
    return next;
    return;
  end if;
  insert into run_events (tenant_id, run_id, seq, name, data)
  select e.tenant_id, e.run_id, e.seq, e.name, e.data::json
  from unnest(events) e where e.run_id = any (moved);
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
comment on function append_events(text, run_head[], run_event[], run_step[], run_claim[]) is
  'The journal''s append: heads, events, steps and claims of many runs; returns the runs whose head moved, and those taken.';
revoke all on function append_events(text, run_head[], run_event[], run_step[], run_claim[]) from public;
grant execute on function append_events(text, run_head[], run_event[], run_step[], run_claim[]) to fermata_app;
