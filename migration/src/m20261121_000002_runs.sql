-- Runs and what the journal writes of them. Only src/journal touches these three tables.

create table runs (
  tenant_id         uuid not null references tenants,
  run_id            uuid not null,
  status            text not null check (status in
                      ('idle', 'planning', 'executing', 'awaiting_approval', 'completed', 'failed', 'cancelled')),
  last_seq          bigint not null check (last_seq >= 0),
  goal              text,
  workflow_name     text,
  workflow_version  integer,
  plan              json,
  input             json not null,
  output            json,
  error             json,
  pending_approvals uuid[] not null default '{}',
  cost              double precision not null default 0,
  budget            double precision,
  on_denied         text not null default 'fail',
  metadata          json not null default '{}',
  created_by        text not null,
  parent_run_id     uuid,
  parent_step_id    text,
  created_at        timestamptz not null,
  updated_at        timestamptz not null,
  finished_at       timestamptz,
  primary key (tenant_id, run_id),
  foreign key (tenant_id, parent_run_id) references runs (tenant_id, run_id),
  foreign key (tenant_id, workflow_name, workflow_version) references workflow_definitions (tenant_id, name, version)
) with (fillfactor = 70);
comment on table runs is 'One row a run: its head. The events are the truth; this row is what lists and locks need.';
comment on column runs.last_seq is 'The sequence number of the last event; an append must name it.';
comment on column runs.output is 'json, not jsonb, like input and error: what tools say may hold U+0000, which jsonb refuses.';
comment on column runs.plan is 'The plan as it stood at plan.ready.';
create index runs_live on runs (tenant_id, status)
  where status in ('idle', 'planning', 'executing', 'awaiting_approval');
create index runs_by_status on runs (tenant_id, status, run_id desc);
create index runs_by_workflow on runs (tenant_id, workflow_name, run_id desc);
create index runs_by_parent on runs (tenant_id, parent_run_id) where parent_run_id is not null;

create table run_events (
  tenant_id uuid not null,
  run_id    uuid not null,
  seq       bigint not null check (seq > 0),
  xact      bigint not null default pg_current_xact_id()::text::bigint,
  name      text not null,
  data      json not null,
  primary key (tenant_id, run_id, seq),
  foreign key (tenant_id, run_id) references runs (tenant_id, run_id)
);
comment on table run_events is 'Append-only. Sequence numbers of a run have no gap.';
comment on column run_events.xact is 'The writing transaction: orders the tenant-wide stream by commit horizon.';
comment on column run_events.data is 'The event exactly as it goes over the wire.';
create index run_events_by_xact on run_events (tenant_id, xact, run_id, seq);

create table run_steps (
  tenant_id   uuid not null,
  run_id      uuid not null,
  step_id     text not null,
  status      text not null,
  attempt     integer not null,
  tool        text not null,
  arguments   json,
  output      json,
  error       json,
  started_at  timestamptz,
  finished_at timestamptz,
  updated_at  timestamptz not null,
  primary key (tenant_id, run_id, step_id),
  foreign key (tenant_id, run_id) references runs (tenant_id, run_id)
) with (fillfactor = 80);
comment on table run_steps is 'The latest state of each step that has begun; item i of a forEach is step_id[i].';
comment on column run_steps.output is 'The whole output, also when it is too large for its event.';

do $$
declare
  one text;
begin
  foreach one in array array['runs', 'run_events', 'run_steps'] loop
    execute format('alter table %I enable row level security', one);
    execute format('alter table %I force row level security', one);
    execute format('create policy tenant on %I to fermata_app, fermata_owner
      using (tenant_id = any ((select current_tenants())::uuid[]))
      with check (tenant_id = any ((select current_tenants())::uuid[]))', one);
  end loop;
end
$$;
grant select, insert on runs, run_events, run_steps to fermata_app;
grant update (status, last_seq, plan, output, error, pending_approvals, cost, updated_at, finished_at) on runs to fermata_app;
grant update (status, attempt, tool, arguments, output, error, started_at, finished_at, updated_at) on run_steps to fermata_app;

create policy system_read on runs for select to fermata_system using (current_user = 'fermata_system');
grant select (tenant_id, run_id, status) on runs to fermata_system;

create function count_runs() returns table (status text, runs bigint)
  language sql stable security definer
  set search_path = pg_catalog, public, pg_temp
as $$
  select r.status, count(*) from runs r
  where r.status in ('idle', 'planning', 'executing', 'awaiting_approval') group by r.status
$$;
comment on function count_runs() is 'Live runs by status over all tenants, for the metrics.';
revoke all on function count_runs() from public;
grant execute on function count_runs() to fermata_app;
alter function count_runs() owner to fermata_system;
