-- What makes the current login too strong to serve with. $1, $2: not used here, but bound for both queries.
with login as (
  select r.oid, r.rolname, r.rolsuper from pg_roles r where r.rolname = current_user
),
-- The login itself and every role it is a member of, at whatever distance.
reach as (
  select r.* from pg_roles r, login where pg_has_role(login.oid, r.oid, 'member')
),
faults (fault, remedy) as (
  select format('the login %s is %s, which row-level security does not bind', login.rolname,
           case when reach.oid = login.oid then 'a superuser' else format('a member of the superuser %s', reach.rolname) end),
         'serve as fermata_app, which deploy/roles.sql makes'
  from reach, login where reach.rolsuper
  union all
  select format('the login %s has BYPASSRLS%s', login.rolname,
           case when reach.oid = login.oid then '' else format(' through %s', reach.rolname) end),
         format('run `alter role %I nobypassrls`, or serve as fermata_app', reach.rolname)
  from reach, login where reach.rolbypassrls and not reach.rolsuper
  union all
  select format('the login %s %s tables, e.g. %s', login.rolname,
           case when reach.oid = login.oid then 'owns' else format('is a member of %s, which owns', reach.rolname) end,
           min(c.relname)),
         'keep the owner''s login (DATABASE_ADMIN_URL) for `fermata migrate` and serve as fermata_app (DATABASE_URL)'
  from reach, login, pg_class c
  where c.relowner = reach.oid and c.relkind in ('r', 'p') and not reach.rolsuper
    and c.relnamespace = 'public'::regnamespace
  group by login.oid, login.rolname, reach.oid, reach.rolname
  union all
  select format('the login %s is a member of fermata_system, which looks across tenants', login.rolname),
         case when login.rolname = 'fermata_owner'
              then 'keep the owner''s login (DATABASE_ADMIN_URL) for `fermata migrate` and serve as fermata_app (DATABASE_URL)'
              else format('run `revoke fermata_system from %I`', login.rolname) end
  from reach, login where reach.rolname = 'fermata_system' and not login.rolsuper
  union all
  select format('the login %s may create roles, and so make itself a stronger one', login.rolname),
         format('run `alter role %I nocreaterole`', reach.rolname)
  from reach, login where reach.rolcreaterole and not reach.rolsuper
)
select fault, remedy from faults where $1::text[] is not null and $2::text[] is not null
