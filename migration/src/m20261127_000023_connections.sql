-- OAuth grants that tenants have from providers, and those that are being asked for.

create table connections (
  tenant_id        uuid not null references tenants,
  name             text not null check (name ~ '^[a-z][a-z0-9._-]{0,62}$'),
  connection_id    uuid not null,
  url              text not null,
  scopes           text[],
  client_id        text,
  client_issuer    text,
  client_key_id    text,
  client_sealed    bytea,
  grant_key_id     text,
  grant_sealed     bytea,
  grant_issuer     text,
  granted          text[],
  renew_at         timestamptz,
  connected_by     text,
  connected_at     timestamptz,
  broken_at        timestamptz,
  renewed_until    timestamptz,
  created_by       text not null,
  created_at       timestamptz not null,
  updated_at       timestamptz not null,
  primary key (tenant_id, name),
  unique (tenant_id, connection_id),
  check ((client_key_id is null) = (client_sealed is null)),
  check ((client_id is null) = (client_issuer is null)),
  check ((grant_key_id is null) = (grant_sealed is null))
);
comment on table connections is 'Grants of access to something outside, each to what one URL names.';
comment on column connections.scopes is 'What is asked for; null: what the resource says it needs.';
comment on column connections.client_sealed is 'The secret of the client that was registered beforehand, sealed for this connection.';
comment on column connections.grant_sealed is 'The tokens, and the client they were given to, sealed for this connection.';
comment on column connections.renew_at is 'When the access token is to be renewed, a little before it is over; null: nobody knows.';
comment on column connections.broken_at is 'Since when the provider refuses to renew the grant.';
comment on column connections.renewed_until is 'Until when one process alone is at renewing the grant.';

create table connection_attempts (
  tenant_id     uuid not null,
  state_hash    bytea not null,
  connection_id uuid not null,
  actor         text not null,
  key_id        text not null,
  sealed        bytea not null,
  expires_at    timestamptz not null,
  primary key (tenant_id, state_hash),
  foreign key (tenant_id, connection_id) references connections (tenant_id, connection_id) on delete cascade
);
create index on connection_attempts (tenant_id, connection_id);
comment on table connection_attempts is 'Authorizations that were begun: each is finished once, by who began it.';
comment on column connection_attempts.state_hash is 'SHA-256 of the state that the provider hands back.';
comment on column connection_attempts.sealed is 'The verifier (PKCE) and what else the exchange of the code takes.';

do $$
declare
  one text;
begin
  foreach one in array array['connections', 'connection_attempts'] loop
    execute format('alter table %I enable row level security', one);
    execute format('alter table %I force row level security', one);
    execute format('create policy tenant on %I to fermata_app, fermata_owner
      using (tenant_id = any ((select current_tenants())::uuid[]))
      with check (tenant_id = any ((select current_tenants())::uuid[]))', one);
  end loop;
end
$$;
grant select, insert, update, delete on connections to fermata_app;
grant select, insert, delete on connection_attempts to fermata_app;
