-- name: outbox_list
-- why: what a person looks at when rows are not sent; in the order in which they go, bounded, and so is what waits behind each.
--      Of the error only the first line. Where only rows that are set aside are wanted, their small index is enough.
-- locks: none
-- index: outbox_pkey, outbox_key
SELECT o.position, o.id AS message_id, o.type, o.aggregateid AS subject, o.source, s.state, o.created_at,
       extract(epoch FROM clock_timestamp() - o.created_at)::float8 AS age_seconds,
       o.attempts, o.retry_at, o.set_aside_at, left(split_part(o.error, E'\n', 1), 500) AS error,
       octet_length(o.payload) AS body_bytes,
       (SELECT count(*)
          FROM (SELECT FROM {schema}.outbox AS b
                 WHERE b.aggregateid = o.aggregateid AND b.position > o.position
                   AND b.set_aside_at IS NULL AND o.set_aside_at IS NULL
                 LIMIT %(behind_max)s) AS behind) AS behind
  FROM {schema}.outbox AS o,
       LATERAL (SELECT CASE WHEN o.set_aside_at IS NOT NULL THEN 'set aside'
                            WHEN o.attempts > 0 THEN 'failing'
                            ELSE 'waiting' END AS state) AS s
 WHERE s.state = ANY (%(states)s)
   AND (o.set_aside_at IS NOT NULL OR %(states)s::text[] <> ARRAY['set aside'])
   AND (%(position)s::bigint IS NULL OR o.position = %(position)s)
 ORDER BY o.position
 LIMIT %(limit)s

-- name: outbox_show
-- why: what `outbox_list` leaves out of one row.
-- locks: none
-- index: outbox_pkey
SELECT time::text AS time, traceparent, error AS whole_error, payload AS body
  FROM {schema}.outbox
 WHERE position = %(position)s

-- name: outbox_find
-- why: which rows a person means. An id has no index of its own, because every row of every producer would pay for it; so this
--      reads the outbox, which is short unless something is wrong.
-- locks: none
-- index: none
SELECT position FROM {schema}.outbox WHERE position = %(position)s OR id = %(message_id)s ORDER BY position

-- name: outbox_begin_so
-- why: an id that was half typed names none, but the person is told which ids begin so.
-- locks: none
-- index: none
SELECT DISTINCT id FROM {schema}.outbox WHERE starts_with(id, %(message_id)s) ORDER BY id LIMIT %(limit)s

-- name: outbox_last_discard
-- why: a person who looks for a row that is not there any more is told who gave it up, and why. It reads the decisions whole:
--      people write them one by one.
-- locks: none
-- index: none
SELECT decided_by, reason
  FROM {schema}.decisions
 WHERE about = 'outbox' AND decision = 'discard' AND (position = %(position)s OR message_id = %(message_id)s)
 ORDER BY id DESC
 LIMIT 1

-- name: outbox_retry
-- why: a row that failed is tried again at once, as if it never had, and the decision is written by the same statement: neither
--      is there without the other. A row that a relay, or somebody else who decides, holds is left alone.
-- locks: the row (SKIP LOCKED)
-- index: outbox_pkey
WITH named AS MATERIALIZED (
    SELECT position, id, aggregatetype, aggregateid, type, source, time, traceparent, created_at, attempts, error, retry_at,
           set_aside_at
      FROM {schema}.outbox
     WHERE position = %(position)s AND (attempts > 0 OR set_aside_at IS NOT NULL)
       FOR UPDATE SKIP LOCKED
), retried AS (
    UPDATE {schema}.outbox AS o
       SET attempts = 0, retry_at = NULL, set_aside_at = NULL
      FROM named
     WHERE o.position = named.position
    RETURNING o.position
)
INSERT INTO {schema}.decisions (about, decision, message_id, position, reason, decided_by, was)
SELECT 'outbox', 'retry', named.id, named.position, %(reason)s, %(decided_by)s, row_to_json(named)
  FROM named, retried
RETURNING was, set_config('synchronous_commit', 'on', true)

-- name: outbox_discard
-- why: a row leaves the outbox unsent, and stays whole in the decision that the same statement writes. Not while a relay may be
--      sending it: that holds the row's own lock, or that of a row ahead of it in its key, because followers are guarded by
--      their head. So all of these must be free. Nor while it is the only way of a parked message that was sent again: its
--      inbox row is pending without a lease, and without a delivery it would be held where nobody sees it.
-- locks: the row, and those ahead of it in its key (SKIP LOCKED)
-- index: outbox_pkey, outbox_key
WITH named AS MATERIALIZED (
    SELECT position, id, aggregatetype, aggregateid, type, source, time, traceparent, created_at, attempts, error, retry_at,
           set_aside_at
      FROM {schema}.outbox
     WHERE position = %(position)s
       FOR UPDATE SKIP LOCKED
), ahead AS MATERIALIZED (
    SELECT e.position
      FROM named, {schema}.outbox AS e
     WHERE e.aggregateid = named.aggregateid AND e.position < named.position
       AND e.set_aside_at IS NULL AND named.set_aside_at IS NULL
), free AS MATERIALIZED (
    SELECT e.position
      FROM {schema}.outbox AS e
     WHERE e.position = ANY (ARRAY(SELECT position FROM ahead))
       FOR UPDATE SKIP LOCKED
), discarded AS (
    DELETE FROM {schema}.outbox AS o
     USING named
     WHERE o.position = named.position AND (SELECT count(*) FROM free) = (SELECT count(*) FROM ahead)
       AND NOT EXISTS (
           SELECT 1
             FROM {schema}.decisions AS d
             JOIN {schema}.inbox AS i
               ON i.consumer = d.consumer
              AND i.message_id = CASE WHEN d.decision IN ('redrive', 'settle', 'did not happen') THEN d.message_id::uuid END
            WHERE d.message_id = named.id AND d.about = 'parked' AND i.state = 'pending' AND i.lease_until IS NULL)
    RETURNING o.payload
)
INSERT INTO {schema}.decisions (about, decision, message_id, position, reason, decided_by, was, body)
SELECT 'outbox', 'discard', named.id, named.position, %(reason)s, %(decided_by)s, row_to_json(named), discarded.payload
  FROM named, discarded
RETURNING was, set_config('synchronous_commit', 'on', true)

-- name: outbox_why_not
-- why: what a person is told whose decision was not written: what is there instead, and what was decided last. It reads the
--      decisions whole: people write them one by one.
-- locks: none
-- index: none
SELECT o.position IS NOT NULL AS there, o.attempts > 0 OR o.set_aside_at IS NOT NULL AS failed,
       EXISTS (
           SELECT 1
             FROM {schema}.decisions AS p
             JOIN {schema}.inbox AS i
               ON i.consumer = p.consumer
              AND i.message_id = CASE WHEN p.decision IN ('redrive', 'settle', 'did not happen') THEN p.message_id::uuid END
            WHERE p.message_id = o.id AND p.about = 'parked' AND i.state = 'pending' AND i.lease_until IS NULL) AS sent_again,
       d.decision, d.decided_by, d.reason, d.decided_at
  FROM (SELECT %(position)s::bigint AS position) AS asked
  LEFT JOIN {schema}.outbox AS o USING (position)
  LEFT JOIN LATERAL (
       SELECT decision, decided_by, reason, decided_at
         FROM {schema}.decisions
        WHERE about = 'outbox' AND position = asked.position
        ORDER BY id DESC
        LIMIT 1) AS d ON true
