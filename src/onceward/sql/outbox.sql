-- name: outbox_insert
-- why: "this message is to be sent", in the transaction of the code that wants it sent. That transaction commits durably whatever
--      its session says: a relay may send the message before a crash takes an unflushed commit back.
-- locks: the new row
-- index: none
INSERT INTO {schema}.outbox (id, aggregatetype, aggregateid, type, source, time, traceparent, payload)
VALUES (%(id)s, %(aggregatetype)s, %(aggregateid)s, %(type)s, %(source)s, %(time)s, %(traceparent)s, %(payload)s)
RETURNING set_config('synchronous_commit', 'on', true)

-- name: outbox_lock_heads
-- why: the first waiting row of each key, and rows without a key. The head's lock is the lock of its whole key: a row may
--      go only when no earlier row of its key is there, locked or not, so two relays cannot overtake each other. Without the
--      payloads: what does not fit into this process is not fetched. A retry that is further ahead than any backoff puts it
--      was written by a clock that was ahead, and is due. A row that is set aside is not taken, and heads nothing.
-- locks: the heads (SKIP LOCKED)
-- index: outbox_pkey, outbox_key
SELECT o.position, o.id, o.aggregateid, o.type, o.attempts, octet_length(o.payload) AS payload_bytes
  FROM {schema}.outbox AS o
 WHERE o.set_aside_at IS NULL
   AND (o.retry_at IS NULL OR o.retry_at <= clock_timestamp()
        OR o.retry_at > clock_timestamp() + make_interval(secs => %(delay_seconds_max)s))
   AND o.position <> ALL (%(except_for)s::bigint[])
   AND (o.aggregateid IS NULL
        OR NOT EXISTS (SELECT 1 FROM {schema}.outbox AS e
                        WHERE e.aggregateid = o.aggregateid AND e.position < o.position AND e.set_aside_at IS NULL))
 ORDER BY o.position
 LIMIT %(limit)s
   FOR UPDATE OF o SKIP LOCKED

-- name: outbox_followers
-- why: the rows behind the heads that this relay holds, in order; the lock of their head guards them. Key by key, because
--      `= ANY (keys) ORDER BY position` may be planned as a walk over the whole outbox that filters by key.
-- locks: none (the heads are held)
-- index: outbox_key
SELECT o.position, o.id, o.aggregateid, o.type, o.attempts, octet_length(o.payload) AS payload_bytes
  FROM unnest(%(keys)s::text[]) AS k (key), LATERAL (
       SELECT * FROM {schema}.outbox AS f
        WHERE f.aggregateid = k.key AND f.position <> ALL (%(positions)s) AND f.set_aside_at IS NULL
        ORDER BY f.position
        LIMIT %(limit)s) AS o
 ORDER BY o.position
 LIMIT %(limit)s

-- name: outbox_payloads
-- why: what is about to be sent, at most `piece_bytes` of each payload from `start` on: a connection's buffer grows with its
--      largest row and never shrinks. The time is a number, because its text depends on the session's DateStyle and TimeZone,
--      and because Postgres knows years that Python does not.
-- locks: none (the rows are held, or guarded by their head)
-- index: outbox_pkey
SELECT position, source, extract(epoch FROM time)::text AS time, traceparent,
       substr(payload, %(start)s, %(piece_bytes)s) AS payload
  FROM {schema}.outbox
 WHERE position = ANY (%(positions)s)

-- name: outbox_delete
-- why: only what the sink confirmed leaves the outbox.
-- locks: the rows (held already, or guarded by their head)
-- index: outbox_pkey
DELETE FROM {schema}.outbox WHERE position = ANY (%(positions)s)

-- name: outbox_postpone
-- why: a row that could not be sent waits for its next try; with a key it holds its key, the rest flow.
-- locks: the row
-- index: outbox_pkey
UPDATE {schema}.outbox
   SET attempts = attempts + 1, error = %(error)s,
       retry_at = clock_timestamp() + make_interval(secs => %(delay_seconds)s)
 WHERE position = %(position)s

-- name: outbox_set_aside
-- why: a row that failed too often stays, but no relay takes it any more, and it holds nothing up, until a person decides.
-- locks: the row
-- index: outbox_pkey
UPDATE {schema}.outbox
   SET attempts = attempts + 1, error = %(error)s, retry_at = NULL, set_aside_at = clock_timestamp()
 WHERE position = %(position)s

-- name: outbox_numbering
-- why: is the sequence of positions behind a row that is there? A logical failover and a data-only restore bring rows, and
--      leave the sequence at its start: what is written from then on would overtake them. The rows are of the
--      statement's snapshot and the sequence is read after it, so a writer at work raises no false alarm. A role that may
--      not read the sequence learns nothing. A row that is set aside counts, too: it may be retried.
-- locks: none
-- index: outbox_pkey
SELECT newest.position AS newest, pg_sequence_last_value(numbers.sequence) AS last
  FROM (SELECT max(position) AS position FROM {schema}.outbox) AS newest,
       (SELECT pg_get_serial_sequence('{schema}.outbox', 'position')::regclass AS sequence) AS numbers
 WHERE newest.position IS NOT NULL
   AND has_sequence_privilege(numbers.sequence, 'USAGE, SELECT')
   AND newest.position > coalesce(pg_sequence_last_value(numbers.sequence), 0)

-- name: outbox_oldest_seconds
-- why: a message that is older than the window is parked when it arrives; a consumer logs that at its start.
-- locks: none
-- index: outbox_pkey
SELECT extract(epoch FROM clock_timestamp() - o.created_at)::float8
  FROM {schema}.outbox AS o
 WHERE o.set_aside_at IS NULL
 ORDER BY o.position
 LIMIT 1
