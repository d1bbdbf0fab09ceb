-- Tools that tenants declare are documents with names and versions too.
alter table llm_documents drop constraint llm_documents_kind_check;
alter table llm_documents add constraint llm_documents_kind_check
  check (kind in ('config', 'template', 'agent', 'http_tool', 'mcp_server'));
comment on table llm_documents is 'Model configurations, prompt templates, agents and tools; a put makes the next version, and a version never changes.';
