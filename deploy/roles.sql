-- The three roles of a Fermata cluster; run once as a superuser, safe to run again. Passwords are set apart.
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
end
$$;
