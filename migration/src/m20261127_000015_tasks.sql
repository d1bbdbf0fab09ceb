-- Jobs and background tasks are runs that say so in their metadata.
create index runs_by_task on runs (tenant_id, (metadata ->> 'fermata.task'), run_id desc)
  where metadata ->> 'fermata.task' is not null;
