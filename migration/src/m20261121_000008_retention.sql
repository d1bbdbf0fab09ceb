-- Retention: runs that ended long ago go, with everything of theirs, and streams know that they are gone.

-- Entered once in a run's life, at its end: the updates before it do not touch the index.
create index runs_ended on runs (finished_at) where finished_at is not null;

-- By default a table is vacuumed and analysed when a fifth and a tenth of it have changed, which for ten million rows
-- is seldom and then much at once. The rows that retention drops are a hundredth of the table a day.
alter table run_events set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05,
                            autovacuum_analyze_scale_factor = 0.02);
alter table run_steps set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02);
alter table runs set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02);

create table stream_gaps (
  tenant_id uuid primary key references tenants,
  xact      bigint not null,
  run_id    uuid not null,
  seq       bigint not null
);
comment on table stream_gaps is
  'Up to where a tenant''s stream is no longer whole: the place of the last event that retention dropped.';
alter table stream_gaps enable row level security;
alter table stream_gaps force row level security;
create policy tenant on stream_gaps to fermata_app, fermata_owner
  using (tenant_id = any ((select current_tenants())::uuid[]))
  with check (tenant_id = any ((select current_tenants())::uuid[]));
create policy system_mark on stream_gaps to fermata_system
  using (current_user = 'fermata_system') with check (current_user = 'fermata_system');
grant select on stream_gaps to fermata_app;
grant select, insert, update (xact, run_id, seq) on stream_gaps to fermata_system;

do $$
declare
  one text;
begin
  foreach one in array array['run_events', 'run_steps', 'approvals', 'approval_decisions'] loop
    execute format('create policy system_delete on %I to fermata_system using (current_user = ''fermata_system'')', one);
    execute format('grant delete on %I to fermata_system', one);
  end loop;
end
$$;
grant select (tenant_id, run_id, seq, xact) on run_events to fermata_system;
grant select (tenant_id, run_id, step_id) on run_steps to fermata_system;
grant select (tenant_id, run_id, approval_id) on approvals to fermata_system;
grant select (tenant_id, approval_id) on approval_decisions to fermata_system;
-- Of runs only those that have ended; and to lock one takes the right to change it, which the check then refuses.
create policy system_delete on runs for delete to fermata_system
  using (current_user = 'fermata_system' and finished_at is not null);
create policy system_lock on runs for update to fermata_system
  using (current_user = 'fermata_system' and finished_at is not null) with check (false);
grant select (parent_run_id, finished_at), update (finished_at), delete on runs to fermata_system;

grant create on schema public to fermata_system;

-- The oldest first, and of each run the events from the first one on, so that what is left of a large one is the end of
-- a stream and never one with a hole. Children go before their parents, and not before these have ended, since a parent
-- may yet ask what became of them.
create function forget_runs(ended_before timestamptz, most bigint) returns bigint
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
    -- A run that is locked just now is somebody's retry.
    for update of r skip locked
  loop
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
comment on function forget_runs(timestamptz, bigint) is
  'Drops about so many rows of runs that ended before then, of all tenants, and marks their streams; returns how many.';
revoke all on function forget_runs(timestamptz, bigint) from public;
grant execute on function forget_runs(timestamptz, bigint) to fermata_app;
alter function forget_runs(timestamptz, bigint) owner to fermata_system;

revoke create on schema public from fermata_system;
