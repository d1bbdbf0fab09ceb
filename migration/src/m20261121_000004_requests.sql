-- What requests leave behind: the audit log, idempotency keys, stream tickets.

create table audit_log (
  tenant_id  uuid not null references tenants,
  audit_id   uuid not null,
  at         timestamptz not null,
  actor      text not null,
  action     text not null,
  target     text not null,
  detail     jsonb not null default '{}',
  request_id text,
  primary key (tenant_id, audit_id)
);
comment on table audit_log is 'Who did what to which thing; append-only by grant.';
create index audit_log_by_target on audit_log (tenant_id, target, audit_id desc);

create table idempotency_keys (
  tenant_id  uuid not null references tenants,
  route      text not null,
  key        text not null,
  body_hash  bytea not null,
  status     smallint,
  response   text,
  created_at timestamptz not null,
  expires_at timestamptz not null,
  primary key (tenant_id, route, key)
);
comment on table idempotency_keys is 'The reply to the first request with a key; commits with that request''s effect.';
create index idempotency_keys_by_expiry on idempotency_keys (expires_at);

create table stream_tickets (
  tenant_id  uuid not null references tenants,
  ticket_id  uuid not null,
  secret     bytea not null,
  path       text not null,
  subject    text not null,
  claims     jsonb not null,
  expires_at timestamptz not null,
  primary key (tenant_id, ticket_id)
);
comment on table stream_tickets is 'A one-time permission for a browser to open one stream; the row is deleted when it is used.';
comment on column stream_tickets.secret is 'SHA-256 of the ticket; the ticket itself is never stored.';
create index stream_tickets_by_expiry on stream_tickets (expires_at);

do $$
declare
  one text;
begin
  foreach one in array array['audit_log', 'idempotency_keys', 'stream_tickets'] loop
    execute format('alter table %I enable row level security', one);
    execute format('alter table %I force row level security', one);
    execute format('create policy tenant on %I to fermata_app, fermata_owner
      using (tenant_id = any ((select current_tenants())::uuid[]))
      with check (tenant_id = any ((select current_tenants())::uuid[]))', one);
  end loop;
end
$$;
grant select, insert on audit_log to fermata_app;
grant select, insert, delete on idempotency_keys, stream_tickets to fermata_app;
grant update (status, response) on idempotency_keys to fermata_app;

create policy system_delete on idempotency_keys to fermata_system using (current_user = 'fermata_system');
create policy system_delete on stream_tickets to fermata_system using (current_user = 'fermata_system');
grant select (expires_at), delete on idempotency_keys, stream_tickets to fermata_system;

create function forget_expired(at timestamptz) returns bigint
  language sql volatile security definer
  set search_path = pg_catalog, public, pg_temp
as $$
  with keys as (delete from idempotency_keys where expires_at < at returning 1),
       tickets as (delete from stream_tickets where expires_at < at returning 1)
  select (select count(*) from keys) + (select count(*) from tickets)
$$;
comment on function forget_expired(timestamptz) is 'Deletes expired idempotency keys and tickets of all tenants; returns how many.';
revoke all on function forget_expired(timestamptz) from public;
grant execute on function forget_expired(timestamptz) to fermata_app;
alter function forget_expired(timestamptz) owner to fermata_system;
