-- What in the schema is not behind the wall. $1: definer functions that are known; $2: tables without tenants.
with tables as (
  select c.oid, c.relname, c.relrowsecurity, c.relforcerowsecurity, a.attnum as tenant
  from pg_class c
  left join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped
  where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
),
walled as (
  select * from tables where tenant is not null
),
faults (fault, remedy) as (
  select format('the table %s has no tenant', relname), 'give it a tenant_id, or list it as tenantless'
  from tables where tenant is null and relname <> all ($2)
  union all
  select format('row-level security is not enabled and forced on %s', relname),
         format('run `alter table %1$I enable row level security, force row level security`', relname)
  from walled where not (relrowsecurity and relforcerowsecurity)
  union all
  select format('the table %s has no policy for its tenant', relname),
         'give it the policy `tenant`, as the other tables have it'
  from walled w where not exists (
    select from pg_policy p where p.polrelid = w.oid and p.polcmd = '*' and p.polpermissive
      and pg_get_expr(p.polqual, p.polrelid) like '%current_tenants()%'
      and pg_get_expr(p.polwithcheck, p.polrelid) like '%current_tenants()%')
  union all
  select format('the policy %s on %s lets rows of any tenant through', p.polname, w.relname),
         'have it read current_tenants(), or give it to fermata_system alone'
  from walled w join pg_policy p on p.polrelid = w.oid
  where p.polpermissive
    and not (p.polroles = array(select oid from pg_roles where rolname = 'fermata_system')
      and coalesce(pg_get_expr(p.polqual, p.polrelid), '') like '%CURRENT_USER = ''fermata_system''%')
    and (coalesce(pg_get_expr(p.polqual, p.polrelid), 'current_tenants()') not like '%current_tenants()%'
      or coalesce(pg_get_expr(p.polwithcheck, p.polrelid), 'current_tenants()') not like '%current_tenants()%')
  union all
  select format('the %s of %s does not lead with tenant_id',
           case i.indisprimary when true then 'primary key' else 'unique index ' || i.indexrelid::regclass end, w.relname),
         'lead it with tenant_id, or it reveals other tenants'' rows'
  from walled w join pg_index i on i.indrelid = w.oid
  where i.indisunique and i.indkey[0] <> w.tenant and w.relname <> 'tenants'
  union all
  select format('the table %s has no primary key', relname), 'give it one that leads with tenant_id'
  from tables t where not exists (select from pg_index i where i.indrelid = t.oid and i.indisprimary)
  union all
  select format('the foreign key %s of %s does not carry the tenant', k.conname, w.relname),
         'reference (tenant_id, …), or it accepts another tenant''s row'
  from walled w
  join pg_constraint k on k.conrelid = w.oid and k.contype = 'f'
  join walled target on target.oid = k.confrelid
  where not exists (select from unnest(k.conkey, k.confkey) as pair (here, there)
                    where here = w.tenant and there = target.tenant)
  union all
  select format('%s may be read or written by everybody', t.relname), format('run `revoke all on %I from public`', t.relname)
  from tables t join pg_class c on c.oid = t.oid, aclexplode(c.relacl) g
  where g.grantee = 0
  union all
  select format('fermata_app may truncate or own %s', t.relname),
         format('run `revoke truncate, references, trigger on %I from fermata_app`', t.relname)
  from tables t
  where exists (select from pg_roles where rolname = 'fermata_app')
    and has_table_privilege('fermata_app', t.oid, 'truncate, references, trigger')
  union all
  select format('the view %s reads with its owner''s rights', c.relname),
         format('run `alter view %I set (security_invoker = true)`; a materialised view cannot be allowed', c.relname)
  from pg_class c
  where c.relnamespace = 'public'::regnamespace and c.relkind in ('v', 'm')
    and not coalesce(c.reloptions @> array['security_invoker=true'], false)
  union all
  select format('the function %s runs with its owner''s rights and is not on the list', f.proname),
         'drop it, or list it after review'
  from pg_proc f where f.pronamespace = 'public'::regnamespace and f.prosecdef and f.proname <> all ($1)
  union all
  select format('the function %s runs with its owner''s rights %s', f.proname, fault.is_so), fault.remedy
  from pg_proc f,
       -- The append looks across no tenants: the policies bind the owner too.
       lateral (values (case f.proname when 'append_events' then 'fermata_owner' else 'fermata_system' end)) as owner (due),
       lateral (values
         (not coalesce((select bool_or(one like 'search_path=pg_catalog, %') from unnest(f.proconfig) one), false),
          'without a pinned search_path', 'run `alter function … set search_path = pg_catalog, public, pg_temp`'),
         (pg_get_userbyid(f.proowner) <> owner.due,
          'for ' || pg_get_userbyid(f.proowner), 'run `alter function … owner to ' || owner.due || '`'),
         (has_function_privilege('public', f.oid, 'execute'),
          'for everybody', 'run `revoke all on function … from public`')
       ) as fault (so, is_so, remedy)
  where f.pronamespace = 'public'::regnamespace and f.prosecdef and fault.so
)
select fault, remedy from faults order by fault
