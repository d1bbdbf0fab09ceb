-- A call may be held because it would take its run past the budget.
alter table approvals drop constraint approvals_question_check;
alter table approvals add constraint approvals_question_check check (question in ('consent', 'repeat', 'budget'));
comment on column approvals.question is 'consent: may it act; repeat: its outcome is unknown, act again or take it as done; budget: is the budget raised for it.';
