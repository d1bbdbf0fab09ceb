-- Model configurations, prompt templates, agents, and the keys that tenants seal for their own models.

create table llm_documents (
  tenant_id   uuid not null references tenants,
  kind        text not null check (kind in ('config', 'template', 'agent')),
  name        text not null check (name ~ '^[a-z][a-z0-9._-]{0,62}$'),
  version     integer not null check (version > 0),
  document_id uuid not null,
  body        jsonb,
  created_by  text not null,
  created_at  timestamptz not null,
  primary key (tenant_id, kind, name, version),
  unique (tenant_id, document_id)
);
comment on table llm_documents is 'Model configurations, prompt templates and agents; a put makes the next version, and a version never changes.';
comment on column llm_documents.body is 'Null in the version that says it was deleted.';

create table llm_keys (
  tenant_id  uuid not null references tenants,
  name       text not null check (name ~ '^[a-z][a-z0-9._-]{0,62}$'),
  key_id     text not null,
  sealed     bytea not null,
  created_by text not null,
  created_at timestamptz not null,
  primary key (tenant_id, name)
);
comment on table llm_keys is 'Secrets that tenants'' configurations name, sealed for their tenant and name.';
comment on column llm_keys.key_id is 'Which of the vault''s keys opens it.';

do $$
declare
  one text;
begin
  foreach one in array array['llm_documents', 'llm_keys'] loop
    execute format('alter table %I enable row level security', one);
    execute format('alter table %I force row level security', one);
    execute format('create policy tenant on %I to fermata_app, fermata_owner
      using (tenant_id = any ((select current_tenants())::uuid[]))
      with check (tenant_id = any ((select current_tenants())::uuid[]))', one);
  end loop;
end
$$;
grant select, insert on llm_documents to fermata_app;
grant select, insert, delete on llm_keys to fermata_app;
grant update (key_id, sealed, created_by, created_at) on llm_keys to fermata_app;
