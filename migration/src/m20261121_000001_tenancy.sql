-- Tenants, and the one function every policy reads.

do $$
begin
  if not exists (select from pg_roles where rolname = 'fermata_app')
     or not exists (select from pg_roles where rolname = 'fermata_system') then
    raise exception 'the roles fermata_app and fermata_system are missing'
      using hint = 'run deploy/roles.sql once as a superuser';
  end if;
end
$$;

grant usage on schema public to fermata_app, fermata_system;
-- So that the server can tell whether the schema is the one it was built for.
grant select on seaql_migrations to fermata_app;

-- The tenants this transaction may touch. Unset, empty or malformed is an error, never "all".
create function current_tenants() returns uuid[]
  language plpgsql stable parallel safe
  set search_path = pg_catalog
as $$
declare
  named text := nullif(current_setting('fermata.tenants', true), '');
begin
  if named is null then
    raise exception 'no tenant is set for this transaction' using errcode = 'insufficient_privilege';
  end if;
  return string_to_array(named, ',')::uuid[];
end
$$;
comment on function current_tenants() is 'The tenants named by the transaction-local setting fermata.tenants; an error when there is none.';
revoke all on function current_tenants() from public;
grant execute on function current_tenants() to fermata_app, fermata_owner;

create table tenants (
  tenant_id  uuid primary key,
  name       text not null unique check (name ~ '^[a-z][a-z0-9-]{0,62}$'),
  settings   jsonb not null default '{}',
  created_at timestamptz not null
);
comment on table tenants is 'A tenant: the wall around everything else.';
comment on column tenants.settings is 'Per-tenant settings, e.g. httpAllow: networks http.request may reach besides the public ones.';
alter table tenants enable row level security;
alter table tenants force row level security;
create policy tenant on tenants to fermata_app, fermata_owner
  using (tenant_id = any ((select current_tenants())::uuid[]))
  with check (tenant_id = any ((select current_tenants())::uuid[]));
-- To the system's functions themselves; the owner, who is a member of that role, is not let in by it.
create policy system_read on tenants for select to fermata_system using (current_user = 'fermata_system');
grant select, insert on tenants to fermata_app;
grant update (settings) on tenants to fermata_app;
grant select (tenant_id, name) on tenants to fermata_system;

grant create on schema public to fermata_system;

-- Returns the id only; whoever asks must still set it to see anything.
create function find_tenant(wanted text) returns uuid
  language sql stable security definer
  set search_path = pg_catalog, public, pg_temp
as $$ select t.tenant_id from tenants t where t.name = wanted $$;
comment on function find_tenant(text) is 'The id of the tenant of that name, or null.';
revoke all on function find_tenant(text) from public;
grant execute on function find_tenant(text) to fermata_app, fermata_owner;
alter function find_tenant(text) owner to fermata_system;

create table workflow_definitions (
  tenant_id   uuid not null references tenants,
  name        text not null check (name ~ '^[a-z][a-z0-9._-]{0,62}$'),
  version     integer not null check (version > 0),
  workflow_id uuid not null,
  source      text not null,
  media_type  text not null,
  definition  jsonb not null,
  created_by  text not null,
  created_at  timestamptz not null,
  primary key (tenant_id, name, version),
  unique (tenant_id, workflow_id)
);
comment on table workflow_definitions is 'Named definitions; a put makes the next version, and a version never changes.';
comment on column workflow_definitions.source is 'What was put, byte for byte.';
alter table workflow_definitions enable row level security;
alter table workflow_definitions force row level security;
create policy tenant on workflow_definitions to fermata_app, fermata_owner
  using (tenant_id = any ((select current_tenants())::uuid[]))
  with check (tenant_id = any ((select current_tenants())::uuid[]));
grant select, insert on workflow_definitions to fermata_app;
