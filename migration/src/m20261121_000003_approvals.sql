-- Holds and what people said of them. Rows follow the events of the journal, in the same commit.

create table approvals (
  tenant_id     uuid not null,
  approval_id   uuid not null,
  run_id        uuid not null,
  step_id       text not null,
  attempt       integer not null,
  question      text not null check (question in ('consent', 'repeat')),
  status        text not null check (status in ('pending', 'approved', 'denied', 'expired', 'cancelled')),
  action        text not null,
  tool_version  text not null,
  arguments     json not null,
  digest        text not null,
  cost_estimate double precision,
  reason        text,
  scope         jsonb not null default '[]',
  requires      jsonb not null default '[]',
  self_approval boolean not null default false,
  asked_by      text not null,
  asked_at      timestamptz not null,
  expires_at    timestamptz,
  decided_by    text,
  decided_at    timestamptz,
  primary key (tenant_id, approval_id),
  foreign key (tenant_id, run_id) references runs (tenant_id, run_id)
);
comment on table approvals is 'One row a hold: the exact call that waits, and its outcome.';
comment on column approvals.question is 'consent: may it act; repeat: its outcome is unknown, act again or take it as done.';
comment on column approvals.digest is 'sha256 over tool, version, canonical arguments, run, step, attempt and tenant.';
create index approvals_by_status on approvals (tenant_id, status, approval_id desc);
create index approvals_by_run on approvals (tenant_id, run_id);

create table approval_decisions (
  tenant_id   uuid not null,
  approval_id uuid not null,
  decided_by  text not null,
  status      text not null check (status in ('approved', 'denied')),
  reason      text,
  digest      text not null,
  claimed_at  timestamptz,
  decided_at  timestamptz not null,
  primary key (tenant_id, approval_id, decided_by),
  foreign key (tenant_id, approval_id) references approvals (tenant_id, approval_id)
);
comment on table approval_decisions is 'What each person said, for the record; the first one decides.';
comment on column approval_decisions.digest is 'The call the decision is about: the held one, or the one with the arguments the approver set.';
comment on column approval_decisions.claimed_at is 'The time the caller claims; decided_at is the record.';

do $$
declare
  one text;
begin
  foreach one in array array['approvals', 'approval_decisions'] loop
    execute format('alter table %I enable row level security', one);
    execute format('alter table %I force row level security', one);
    execute format('create policy tenant on %I to fermata_app, fermata_owner
      using (tenant_id = any ((select current_tenants())::uuid[]))
      with check (tenant_id = any ((select current_tenants())::uuid[]))', one);
  end loop;
end
$$;
grant select, insert on approvals, approval_decisions to fermata_app;
grant update (status, decided_by, decided_at) on approvals to fermata_app;
