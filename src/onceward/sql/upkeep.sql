-- name: consumer_seen
-- why: upkeep keeps partitions for the longest window of all consumers. Every process records its own at its start, and
--      again every hour. What comes back is the longest that a process of this name had within a day.
-- locks: the row
-- index: consumers_pkey
INSERT INTO {schema}.consumers AS c (name, window_seconds)
VALUES (%(consumer)s, %(window_seconds)s)
ON CONFLICT (name, window_seconds) DO UPDATE SET seen_at = clock_timestamp()
RETURNING greatest(c.window_seconds, (SELECT max(o.window_seconds) FROM {schema}.consumers AS o
                                       WHERE o.name = %(consumer)s AND o.seen_at > clock_timestamp() - interval '1 day'))

-- name: consumer_windows_forget
-- why: a window that no process of its name has had for a day, while another process of that name was seen, is forgotten:
--      the only way in which a recorded window becomes shorter. A consumer that is stopped keeps its window.
-- locks: the rows
-- index: none
DELETE FROM {schema}.consumers AS c
 WHERE c.seen_at < (SELECT max(o.seen_at) FROM {schema}.consumers AS o WHERE o.name = c.name) - interval '1 day'
RETURNING c.name, c.window_seconds

-- name: window_longest
-- why: how far back any consumer of this schema recognises a duplicate; NULL: none was ever started.
-- locks: none
-- index: none
SELECT max(window_seconds) FROM {schema}.consumers

-- name: retired_day
-- why: whether the partition of an id is missing because its day was retired, or because upkeep is late. Asked only after
--      Postgres has refused the row. The table may still be there, detached: upkeep has not yet decided whether it goes.
-- locks: none
-- index: none
SELECT %(day)s::date <= r.day AS retired, to_regclass(%(table)s) IS NOT NULL AS undecided
  FROM {schema}.retired AS r

-- name: retired_hold
-- why: what makes partitions reads the youngest retired day under its lock, and holds that until the partitions are
--      committed: no day can be retired meanwhile. FOR SHARE also where a transaction reads from an older snapshot (REPEATABLE READ): a row
--      that has changed since is an error there, never an old answer.
-- locks: the row, shared
-- index: none
SELECT day FROM {schema}.retired FOR SHARE

-- name: retire
-- why: a day counts as retired before its partitions are touched, in a transaction of its own.
-- locks: the row
-- index: none
UPDATE {schema}.retired SET day = greatest(day, %(day)s::date), retired_at = clock_timestamp()

-- name: partition_tables
-- why: the tables of past and coming days, attached or not: an upkeep that died leaves detached ones behind.
-- locks: none
-- index: none
SELECT c.relname
  FROM pg_class AS c
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = %(schema)s AND c.relkind = 'r' AND c.relname ~ '^(inbox|intents)_p[0-9]+$'
 ORDER BY c.relname

-- name: partitions_attached
-- why: the partitions of inbox and intents, and whether a detach of one is half done.
-- locks: none
-- index: none
SELECT c.relname, i.inhdetachpending
  FROM pg_inherits AS i
  JOIN pg_class AS c ON c.oid = i.inhrelid
  JOIN pg_class AS p ON p.oid = i.inhparent
  JOIN pg_namespace AS n ON n.oid = p.relnamespace
 WHERE n.nspname = %(schema)s AND p.relname = ANY (%(tables)s) AND c.relkind = 'r'
 ORDER BY c.relname

-- name: partition_owner
-- why: a partition belongs to the owner of the table that it is a partition of, whichever role made it (a superuser's cron
--      job, a member of the owning role): otherwise the next upkeep, under another role, may not drop it. No row: the maker
--      is that owner.
-- locks: none
-- index: none
SELECT pg_get_userbyid(c.relowner)::text
  FROM pg_class AS c
 WHERE c.oid = to_regclass(%(table)s) AND pg_get_userbyid(c.relowner) <> current_user

-- name: lock_timeout_set
-- why: upkeep waits for a lock only briefly, on a connection that is its caller's: it changes the setting for one statement
--      and then puts the caller's own back. As a function, because SET takes no parameter.
-- locks: none
-- index: none
SELECT set_config('lock_timeout', %(lock_timeout)s, false)
