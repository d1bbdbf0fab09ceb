-- Who works on what. A worker is alive while its session holds its advisory lock and its time has not run out.

create table workers (
  worker_id  uuid primary key,
  lock_key   bigint not null unique,
  alive_until timestamptz not null
);
comment on table workers is 'Worker processes; no tenant data.';
comment on column workers.lock_key is 'The session advisory lock the process holds for as long as it lives.';
grant select, insert, update, delete on workers to fermata_app;
grant select, delete on workers to fermata_system;

create table run_leases (
  tenant_id uuid not null,
  run_id    uuid not null,
  due_at    timestamptz,
  worker_id uuid references workers,
  epoch     bigint not null default 0,
  primary key (tenant_id, run_id),
  foreign key (tenant_id, run_id) references runs (tenant_id, run_id)
) with (fillfactor = 70);
comment on table run_leases is 'One row a live run: when it wants a worker next, and which one has it.';
comment on column run_leases.due_at is 'When the run has something to do; null while only a command can move it.';
comment on column run_leases.epoch is 'Counts claims.';
create index run_leases_due on run_leases (tenant_id, due_at) where worker_id is null and due_at is not null;
create index run_leases_next on run_leases (due_at) where worker_id is null and due_at is not null;
create index run_leases_held on run_leases (worker_id) where worker_id is not null;
create index run_leases_busy on run_leases (tenant_id) where worker_id is not null;
alter table run_leases enable row level security;
alter table run_leases force row level security;
create policy tenant on run_leases to fermata_app, fermata_owner
  using (tenant_id = any ((select current_tenants())::uuid[]))
  with check (tenant_id = any ((select current_tenants())::uuid[]));
create policy system_claim on run_leases to fermata_system
  using (current_user = 'fermata_system') with check (current_user = 'fermata_system');
grant select, insert, update, delete on run_leases to fermata_app;
grant select, update (due_at, worker_id, epoch) on run_leases to fermata_system;

-- Fair between tenants: a run's turn counts the runs its tenant holds and those before it, the lowest turn goes
-- first, and chance settles between equals, so that no tenant is always last.
create function claim_runs(claimer uuid, most integer, tenant_most integer, at timestamptz)
  returns table (tenant_id uuid, run_id uuid, epoch bigint)
  language sql volatile security definer
  set search_path = pg_catalog, public, pg_temp
as $$
  -- The tenants that have something to do now or later, by skipping from one to the next.
  with recursive waiting (tenant) as (
    (select l.tenant_id from run_leases l
     where l.worker_id is null and l.due_at is not null order by l.tenant_id limit 1)
    union all
    select (select l.tenant_id from run_leases l
            where l.worker_id is null and l.due_at is not null and l.tenant_id > w.tenant
            order by l.tenant_id limit 1)
    from waiting w where w.tenant is not null
  ),
  ready as (
    select r.tenant_id, r.run_id, r.turn
    from waiting w
    cross join lateral (
      select count(*) as held from run_leases b where b.tenant_id = w.tenant and b.worker_id is not null
    ) b
    cross join lateral (
      select l.tenant_id, l.run_id, b.held + row_number() over (order by l.due_at) as turn
      from run_leases l
      where l.tenant_id = w.tenant and l.worker_id is null and l.due_at <= at
      order by l.due_at
      limit least(most, greatest(0, tenant_most - b.held))
    ) r
    where w.tenant is not null
  ),
  chosen as (
    select l.tenant_id, l.run_id
    from run_leases l
    join (select * from ready order by turn, random() limit most) r on (l.tenant_id, l.run_id) = (r.tenant_id, r.run_id)
    where l.worker_id is null
    for update of l skip locked
  )
  update run_leases l
  set worker_id = claimer, epoch = l.epoch + 1, due_at = null
  from chosen c
  where (l.tenant_id, l.run_id) = (c.tenant_id, c.run_id)
  returning l.tenant_id, l.run_id, l.epoch
$$;
comment on function claim_runs(uuid, integer, integer, timestamptz) is 'Claims due runs for a worker, round robin over tenants; returns ids.';

create function next_due() returns timestamptz
  language sql stable security definer
  set search_path = pg_catalog, public, pg_temp
as $$ select min(l.due_at) from run_leases l where l.worker_id is null and l.due_at is not null $$;
comment on function next_due() is 'When the next unclaimed run wants a worker.';

-- A worker is dead when its lock can be taken or its time has run out; its runs are due at once.
create function release_dead_workers(at timestamptz) returns bigint
  language plpgsql volatile security definer
  set search_path = pg_catalog, public, pg_temp
as $$
declare
  dead uuid[];
  freed bigint;
begin
  select array_agg(w.worker_id) into dead
  from workers w where w.alive_until < at or pg_try_advisory_xact_lock(w.lock_key);
  if dead is null then
    return 0;
  end if;
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
comment on function release_dead_workers(timestamptz) is 'Frees the runs of workers that are gone; returns how many.';

-- A claim whose answer was lost is held by a worker that does not know of it.
create function release_stray_runs(claimer uuid, known uuid[], at timestamptz) returns bigint
  language plpgsql volatile security definer
  set search_path = pg_catalog, public, pg_temp
as $$
declare
  freed bigint;
begin
  update run_leases l set worker_id = null, due_at = at
  where l.worker_id = claimer and l.run_id <> all (known);
  get diagnostics freed = row_count;
  return freed;
end
$$;
comment on function release_stray_runs(uuid, uuid[], timestamptz) is 'Frees the runs a worker holds without knowing; returns how many.';

do $$
declare
  one text;
begin
  foreach one in array array['claim_runs(uuid, integer, integer, timestamptz)', 'next_due()', 'release_dead_workers(timestamptz)',
                             'release_stray_runs(uuid, uuid[], timestamptz)'] loop
    execute 'revoke all on function ' || one || ' from public';
    execute 'grant execute on function ' || one || ' to fermata_app';
    execute 'alter function ' || one || ' owner to fermata_system';
  end loop;
end
$$;

revoke create on schema public from fermata_system;
