-- MCP servers of tenants, and what their tools have become since they were pinned.
alter table llm_documents drop constraint if exists llm_documents_kind_check;
alter table llm_documents
  add constraint llm_documents_kind_check check (kind in ('config', 'template', 'agent', 'http_tool', 'mcp_server'));

create table mcp_changes (
  tenant_id uuid not null references tenants,
  server    text not null,
  tool      text not null,
  seen      jsonb not null,
  digest    text not null,
  seen_at   timestamptz not null,
  primary key (tenant_id, server, tool)
);
comment on table mcp_changes is 'Tools of MCP servers that are no longer what was pinned: out of use until somebody approves what they are now.';
comment on column mcp_changes.seen is 'The tool as it was listed: description, schemas, annotations.';

alter table mcp_changes enable row level security;
alter table mcp_changes force row level security;
create policy tenant on mcp_changes to fermata_app, fermata_owner
  using (tenant_id = any ((select current_tenants())::uuid[]))
  with check (tenant_id = any ((select current_tenants())::uuid[]));
grant select, insert, delete on mcp_changes to fermata_app;
grant update (seen, digest, seen_at) on mcp_changes to fermata_app;
