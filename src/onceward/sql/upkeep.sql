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
-- why: the days' partitions of inbox and intents, and whether a detach of one is half done. That of the untimed ids is not one
--      of them: no upkeep may touch it.
-- locks: none
-- index: none
SELECT c.relname, i.inhdetachpending
  FROM pg_inherits AS i
  JOIN pg_class AS c ON c.oid = i.inhrelid
  JOIN pg_class AS p ON p.oid = i.inhparent
  JOIN pg_namespace AS n ON n.oid = p.relnamespace
 WHERE n.nspname = %(schema)s AND p.relname = ANY (%(tables)s) AND c.relkind = 'r' AND c.relname ~ '_p[0-9]+$'
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

-- name: windows_by_consumer
-- why: how long the rows of untimed ids are kept: a consumer's own longest window. A row whose consumer has never reported one
--      is not pruned.
-- locks: none
-- index: none
SELECT name, max(window_seconds) FROM {schema}.consumers GROUP BY name ORDER BY name

-- name: untimed_prune
-- why: one batch of a consumer's untimed messages that are over (done, or discarded) and past its window, with their effects and
--      attempts. Never one that is pending or parked, or has an effect without an answer. By taken_at, because such an id has
--      no time of its own. Through the parents and not by the partition's name: whoever owns those may do this, whichever role
--      made the partition. A statement's time, because an index serves no clock that moves while it is read.
-- locks: the inbox rows that are free, their intents and attempts
-- index: inbox_untimed_over, intents_pkey, attempts_pkey
WITH due AS (
    SELECT i.consumer, i.message_id
      FROM {schema}.inbox AS i
     WHERE i.consumer = %(consumer)s AND i.message_id >= 'ff000000-0000-0000-0000-000000000000'
       AND i.state IN ('done', 'discarded')
       AND i.taken_at < statement_timestamp() - make_interval(secs => %(window_seconds)s)
       AND NOT EXISTS (SELECT 1 FROM {schema}.intents AS t
                        WHERE t.consumer = i.consumer AND t.message_id = i.message_id
                          AND t.message_id >= 'ff000000-0000-0000-0000-000000000000'
                          AND t.state IN ('pending', 'unknown'))
     ORDER BY i.taken_at
     LIMIT %(limit)s
       FOR UPDATE OF i SKIP LOCKED
), intents_gone AS (
    DELETE FROM {schema}.intents AS t
     USING due
     WHERE t.consumer = due.consumer AND t.message_id = due.message_id
       AND t.message_id >= 'ff000000-0000-0000-0000-000000000000'
), attempts_gone AS (
    DELETE FROM {schema}.attempts AS a
     USING due
     WHERE a.consumer = due.consumer AND a.message_id = due.message_id
)
DELETE FROM {schema}.inbox AS i
 USING due
 WHERE i.consumer = due.consumer AND i.message_id = due.message_id
   AND i.message_id >= 'ff000000-0000-0000-0000-000000000000'
RETURNING i.message_id

-- name: untimed_prune_attempts
-- why: the failed attempts of untimed messages that never got a row and have not failed for a whole window.
-- locks: the rows
-- index: attempts_pkey, inbox_pkey
DELETE FROM {schema}.attempts AS a
 WHERE a.consumer = %(consumer)s AND a.message_id >= 'ff000000-0000-0000-0000-000000000000'
   AND a.failed_at < statement_timestamp() - make_interval(secs => %(window_seconds)s)
   AND NOT EXISTS (SELECT 1 FROM {schema}.inbox AS i WHERE i.consumer = a.consumer AND i.message_id = a.message_id)
