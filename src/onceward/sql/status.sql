-- name: status_outbox
-- why: how much waits to be sent, how much of it fails, and what waits for a person. It reads the outbox once, from end to end.
-- locks: none
-- index: none
SELECT count(*) FILTER (WHERE set_aside_at IS NULL AND attempts = 0) AS waiting,
       count(*) FILTER (WHERE set_aside_at IS NULL AND attempts > 0) AS failing,
       count(*) FILTER (WHERE set_aside_at IS NOT NULL) AS set_aside,
       extract(epoch FROM clock_timestamp() - min(created_at) FILTER (WHERE set_aside_at IS NULL))::float8 AS oldest_seconds,
       extract(epoch FROM clock_timestamp() - min(set_aside_at))::float8 AS oldest_set_aside_seconds
  FROM {schema}.outbox

-- name: status_parked
-- why: what a person must look at, by consumer and reason. It reads the parked messages once, from end to end.
-- locks: none
-- index: none
SELECT consumer, reason, count(*) AS count, extract(epoch FROM clock_timestamp() - min(parked_at))::float8 AS oldest_seconds
  FROM {schema}.parked
 GROUP BY consumer, reason
 ORDER BY consumer, reason

-- name: status_decisions
-- why: what people decided lately: whoever takes over a shift sees that somebody is at work. A statement's time, because an
--      index serves no clock that moves while it is read.
-- locks: none
-- index: decisions_age
SELECT about, decision, count(*) AS count
  FROM {schema}.decisions
 WHERE decided_at > statement_timestamp() - make_interval(secs => %(seconds)s)
 GROUP BY about, decision
 ORDER BY about, decision
