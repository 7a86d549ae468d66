-- Database sessions that a message's handler lost: no failed attempt (the server may have been restarted), but counted, so that
-- a message that loses its session every time is parked in the end.
ALTER TABLE {schema}.attempts ADD COLUMN sessions_lost integer NOT NULL DEFAULT 0;
