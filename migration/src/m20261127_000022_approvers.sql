-- Who may decide on a hold, where that is not anybody with the permission.
alter table approvals add column approvers jsonb not null default '[]';
comment on column approvals.approvers is 'Subjects, roles and groups that may decide; anybody with the permission when empty.';

-- Servers of the version before go on with the type and the function that they know, until they are replaced.
create type approval_question as (
  tenant_id uuid, run_id uuid, approval_id uuid, step_id text, attempt integer, question text, action text,
  tool_version text, arguments text, digest text, cost_estimate double precision, reason text, scope text[],
  requires text[], approvers text[], self_approval boolean, asked_at timestamptz, expires_at timestamptz
);
create function ask_approvals(moved uuid[], asked approval_question[]) returns uuid[]
  language plpgsql volatile
as $$
begin
  insert into approvals (tenant_id, approval_id, run_id, step_id, attempt, question, status, action, tool_version,
                         arguments, digest, cost_estimate, reason, scope, requires, approvers, self_approval, asked_by,
                         asked_at, expires_at)
  select a.tenant_id, a.approval_id, a.run_id, a.step_id, a.attempt, a.question, 'pending', a.action, a.tool_version,
         a.arguments::json, a.digest, a.cost_estimate, a.reason, to_jsonb(a.scope), to_jsonb(a.requires),
         to_jsonb(a.approvers), a.self_approval,
         (select r.created_by from runs r where r.tenant_id = a.tenant_id and r.run_id = a.run_id),
         a.asked_at, a.expires_at
  from unnest(asked) a where a.run_id = any (moved);
  return moved;
end
$$;
revoke all on function ask_approvals(uuid[], approval_question[]) from public;
grant execute on function ask_approvals(uuid[], approval_question[]) to fermata_app;

-- A run may be one of a definition that the server brings along: version 0, which is in no table.
alter table runs drop constraint runs_tenant_id_workflow_name_workflow_version_fkey;
