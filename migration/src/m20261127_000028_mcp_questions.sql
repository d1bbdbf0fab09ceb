-- Which changes of tools of MCP servers people were asked about: each digest once, until the tool is pinned anew.
create table mcp_questions (
  tenant_id uuid not null references tenants,
  server    text not null,
  tool      text not null,
  digest    text not null,
  run_id    uuid not null,
  asked_at  timestamptz not null,
  primary key (tenant_id, server, tool, digest)
);
comment on table mcp_questions is 'Changes of tools that people were asked about since the tool was pinned.';
comment on column mcp_questions.run_id is 'The run whose one step is held until somebody has decided; it may be gone by now.';

alter table mcp_questions enable row level security;
alter table mcp_questions force row level security;
create policy tenant on mcp_questions to fermata_app, fermata_owner
  using (tenant_id = any ((select current_tenants())::uuid[]))
  with check (tenant_id = any ((select current_tenants())::uuid[]));
grant select, insert, delete on mcp_questions to fermata_app;
