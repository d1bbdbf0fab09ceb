-- Who was given up for dead stays dead, also while the row of one of its runs is locked by a late append: an end of its
-- time that no sign of life moves again. Else a worker that wakes could go on with runs that are somebody else's by now.

grant update (alive_until) on workers to fermata_system;

create or replace function release_dead_workers(at timestamptz) returns bigint
  language plpgsql volatile security definer
  set search_path = pg_catalog, public, pg_temp
as $$
declare
  dead uuid[];
  freed bigint;
begin
  -- Locked, so that a sign of life comes either before, and counts, or after, and finds that it is too late.
  select array_agg(d.worker_id) into dead from (
    select w.worker_id from workers w
    where w.alive_until < at or pg_try_advisory_xact_lock(w.lock_key)
    for update
  ) d;
  if dead is null then
    return 0;
  end if;
  update workers w set alive_until = '-infinity' where w.worker_id = any (dead);
  -- A row that is locked just now is somebody's late append; the next sweep finds it.
  with held as (
    select l.tenant_id, l.run_id from run_leases l where l.worker_id = any (dead) for update skip locked
  )
  update run_leases l set worker_id = null, due_at = at
  from held h where (l.tenant_id, l.run_id) = (h.tenant_id, h.run_id);
  get diagnostics freed = row_count;
  delete from workers w where w.worker_id = any (dead)
    and not exists (select from run_leases l where l.worker_id = w.worker_id);
  return freed;
end
$$;
comment on column workers.alive_until is 'Until when it is taken for alive unless it says so again; -infinity once it was given up.';
