-- An append of a step writes its run's head and its events, and nothing else. How a step stands is in the events, which
-- is where everything about a run is read; a row is left for the one thing that is not in them. Servers of the version
-- before go on writing one for each step until they are replaced, which does no harm.
comment on table run_steps is
  'Of the steps whose output is too large for its event, that output. How steps stand is in the events.';
comment on column run_steps.output is 'The whole output.';

-- No server of a version that is still about has this one.
drop function append_events(text, run_head[], run_event[], run_step[], run_claim[]);
