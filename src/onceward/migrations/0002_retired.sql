-- What was retired is remembered: a partition that is missing because its day was retired must never be made again, or an id
-- that was finished there would be taken as new by a process whose window is longer.

-- The youngest day that upkeep ever retired: one row, also before any was (NULL), so that those who make a partition and
-- those who retire one meet at its lock. Days at or before it get no new partition, whatever anybody's window.
CREATE TABLE {schema}.retired (
    one         boolean     PRIMARY KEY DEFAULT true CONSTRAINT retired_one CHECK (one),
    day         date,
    retired_at  timestamptz
);

-- A database that is older than this memory: whatever day is missing there may have been retired, so it counts as retired.
-- In a new database there is no partition yet, and nothing was retired.
WITH days AS (
    SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day
      FROM pg_inherits AS i
      JOIN pg_class AS c ON c.oid = i.inhrelid
     WHERE i.inhparent = '{schema}.inbox'::regclass
), past AS (
    SELECT generate_series(min(day) - 1, greatest(min(day) - 1, (clock_timestamp() AT TIME ZONE 'UTC')::date - 2),
                           interval '1 day')::date AS day
      FROM days
)
INSERT INTO {schema}.retired (day)
SELECT max(day) FROM past WHERE day NOT IN (SELECT day FROM days);

-- A consumer's processes may have different windows (a deploy that changes it, one process at a time): each is a row of its
-- own, so that one that starts with a shorter window does not take the longer one away from those that still run.
ALTER TABLE {schema}.consumers DROP CONSTRAINT consumers_pkey;
ALTER TABLE {schema}.consumers ADD CONSTRAINT consumers_pkey PRIMARY KEY (name, window_seconds);
