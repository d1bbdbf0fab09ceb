-- A call may come back for what it needs: a form that somebody fills in.
alter table approvals drop constraint approvals_question_check;
alter table approvals
  add constraint approvals_question_check check (question in ('consent', 'repeat', 'budget', 'input'));
comment on column approvals.question is 'consent: may it act; repeat: its outcome is unknown, act again or take it as done; budget: is the budget raised for it; input: will somebody fill in its form.';

alter table approvals add column form json;
comment on column approvals.form is 'What is to be filled in: message and JSON Schema.';

-- Servers of the version before go on with the type and the function that they know, until they are replaced.
create type approval_hold as (
  tenant_id uuid, run_id uuid, approval_id uuid, step_id text, attempt integer, question text, action text,
  tool_version text, arguments text, digest text, cost_estimate double precision, reason text, scope text[],
  requires text[], approvers text[], self_approval boolean, asked_at timestamptz, expires_at timestamptz, form text
);
create function ask_approvals(moved uuid[], asked approval_hold[]) returns uuid[]
  language plpgsql volatile
as $$
begin
  insert into approvals (tenant_id, approval_id, run_id, step_id, attempt, question, status, action, tool_version,
                         arguments, digest, cost_estimate, reason, scope, requires, approvers, self_approval, asked_by,
                         asked_at, expires_at, form)
  select a.tenant_id, a.approval_id, a.run_id, a.step_id, a.attempt, a.question, 'pending', a.action, a.tool_version,
         a.arguments::json, a.digest, a.cost_estimate, a.reason, to_jsonb(a.scope), to_jsonb(a.requires),
         to_jsonb(a.approvers), a.self_approval,
         (select r.created_by from runs r where r.tenant_id = a.tenant_id and r.run_id = a.run_id),
         a.asked_at, a.expires_at, a.form::json
  from unnest(asked) a where a.run_id = any (moved);
  return moved;
end
$$;
revoke all on function ask_approvals(uuid[], approval_hold[]) from public;
grant execute on function ask_approvals(uuid[], approval_hold[]) to fermata_app;
