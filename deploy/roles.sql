-- The three roles of a Fermata cluster; run once as a superuser, safe to run again. Passwords are set apart:
--   alter role fermata_owner password '…'; alter role fermata_app password '…';
-- The database is made apart too: create database fermata owner fermata_owner;
--   fermata_owner   migrates; owns the tables (DATABASE_ADMIN_URL)
--   fermata_app     the server's login: no owner, no superuser, no bypass of row-level security (DATABASE_URL)
--   fermata_system  nobody logs in as it; owns the few functions that look across tenants and return ids
do $$
begin
  if not exists (select from pg_roles where rolname = 'fermata_owner') then
    create role fermata_owner login nosuperuser nocreatedb nocreaterole nobypassrls;
  end if;
  if not exists (select from pg_roles where rolname = 'fermata_app') then
    create role fermata_app login nosuperuser nocreatedb nocreaterole nobypassrls;
  end if;
  if not exists (select from pg_roles where rolname = 'fermata_system') then
    create role fermata_system nologin nosuperuser nocreatedb nocreaterole nobypassrls;
  end if;
  -- The owner hands functions over to fermata_system, for which it must be a member.
  grant fermata_system to fermata_owner;
  -- No transaction of the server may hold back the tenant-wide stream for long. Set at the role, they hold
  -- through a connection pooler too.
  alter role fermata_app set statement_timeout = '30s';
  alter role fermata_app set lock_timeout = '10s';
  alter role fermata_app set idle_in_transaction_session_timeout = '30s';
  -- Its statements go by keys, whatever the values: planning them anew for each costs more than it finds.
  alter role fermata_app set plan_cache_mode = force_generic_plan;
  if current_setting('server_version_num')::int >= 170000 then
    alter role fermata_app set transaction_timeout = '60s';
  end if;
end
$$;
