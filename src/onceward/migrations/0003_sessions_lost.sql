-- Database sessions that a message's handler lost: no failed attempt (the server may have been restarted), but counted, so that
-- a message that loses its session every time is parked in the end.
ALTER TABLE {schema}.attempts ADD COLUMN sessions_lost integer NOT NULL DEFAULT 0;

-- Deliveries of a transactional message that its queue counted although nothing went wrong: it was deferred, or waited behind
-- another worker's open transaction. What the queue counted beyond these are crashes.
ALTER TABLE {schema}.attempts ADD COLUMN excused integer NOT NULL DEFAULT 0;
