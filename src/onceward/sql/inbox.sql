-- name: inbox_insert
-- why: INSERT-first. One row back = TAKEN; none = somebody was here, or the id's age forbids it: read the row next.
--      The settings make the commit durable whatever the session's own are, and give the handler its own lock timeout; they
--      are part of this statement because a round trip of their own would be the most expensive part of a take. The
--      transaction's id is what the commit guard looks for, and shows later whether it was committed. What an earlier
--      handler left in this session (statements prepared by hand, cursors, temporary tables) is returned as the SQL that
--      clears it: looking costs less than clearing what is hardly ever there.
-- locks: the new row; waits (lock_timeout) for an uncommitted row of the same id
-- index: inbox_pkey
INSERT INTO {schema}.inbox (consumer, message_id, fingerprint, state, lease_until, worker)
SELECT %(consumer)s, %(message_id)s, %(fingerprint)s, %(state)s,
       clock_timestamp() + make_interval(secs => %(lease_seconds)s), %(worker)s
 WHERE CASE WHEN %(id_seconds)s::float8 IS NULL THEN %(untimed_ids)s
            ELSE to_timestamp(%(id_seconds)s) BETWEEN clock_timestamp() - make_interval(secs => %(window_seconds)s)
                                                  AND clock_timestamp() + make_interval(secs => %(future_seconds)s)
       END
ON CONFLICT (consumer, message_id) DO NOTHING
RETURNING token, pg_current_xact_id()::text AS transaction,
          ARRAY (SELECT 'DEALLOCATE ' || quote_ident(s.name) FROM pg_prepared_statement() AS s WHERE s.from_sql
                  UNION ALL SELECT 'CLOSE ALL' FROM pg_cursor() AS c WHERE c.is_holdable
                  UNION ALL SELECT 'DISCARD TEMP' WHERE pg_my_temp_schema() <> 0) AS cleaning,
          set_config('synchronous_commit', 'on', true), set_config('lock_timeout', %(lock_timeout)s, true)

-- name: inbox_read
-- why: the second statement of a take. It must be a statement of its own: one that both inserts and reads sees neither
--      its own nor the other's row when it raced. An untimed id has no age: it is current where the consumer takes such
--      ids, and elsewhere only a row that is there already lets it pass.
-- locks: none
-- index: inbox_pkey
SELECT CASE WHEN %(id_seconds)s::float8 IS NULL THEN CASE WHEN %(untimed_ids)s THEN 'current' ELSE 'untimed' END
            WHEN to_timestamp(%(id_seconds)s) < clock_timestamp() - make_interval(secs => %(window_seconds)s) THEN 'old'
            WHEN to_timestamp(%(id_seconds)s) > clock_timestamp() + make_interval(secs => %(future_seconds)s) THEN 'future'
            ELSE 'current' END AS age,
       i.state, i.fingerprint = %(fingerprint)s AS same_payload, i.token,
       (i.lease_until IS NULL OR i.lease_until <= clock_timestamp()
        OR i.lease_until > clock_timestamp() + make_interval(secs => %(lease_believed_seconds)s)) AS lapsed,
       greatest(extract(epoch FROM i.lease_until - clock_timestamp())::float8, 0) AS lease_left_seconds
  FROM (SELECT 1) AS one
  LEFT JOIN {schema}.inbox AS i ON i.consumer = %(consumer)s AND i.message_id = %(message_id)s

-- name: inbox_take_over
-- why: the holder of a pending row let its lease lapse, or a person redrove the message. The expected state and token are
--      repeated, so that of two workers that try, one gets no row. A lease that reaches further than any of ours was made
--      by a clock that was ahead: it counts as lapsed, or its message would wait until that time. The fence makes this as
--      safe as any take-over.
--      How many intents there are says whether an earlier handler of this message had effects.
-- locks: the row
-- index: inbox_pkey, intents_pkey
UPDATE {schema}.inbox
   SET state = %(state)s, token = token + 1, worker = %(worker)s, taken_at = clock_timestamp(),
       lease_until = clock_timestamp() + make_interval(secs => %(lease_seconds)s)
 WHERE consumer = %(consumer)s AND message_id = %(message_id)s AND state = 'pending' AND token = %(token)s
   AND fingerprint = %(fingerprint)s
   AND (lease_until IS NULL OR lease_until <= clock_timestamp()
        OR lease_until > clock_timestamp() + make_interval(secs => %(lease_believed_seconds)s))
RETURNING token, pg_current_xact_id()::text AS transaction,
          ARRAY (SELECT 'DEALLOCATE ' || quote_ident(s.name) FROM pg_prepared_statement() AS s WHERE s.from_sql
                  UNION ALL SELECT 'CLOSE ALL' FROM pg_cursor() AS c WHERE c.is_holdable
                  UNION ALL SELECT 'DISCARD TEMP' WHERE pg_my_temp_schema() <> 0) AS cleaning,
          token - forgiven AS takes,
          (SELECT count(*) FROM {schema}.intents AS t
            WHERE t.consumer = %(consumer)s AND t.message_id = %(message_id)s) AS intents,
          set_config('synchronous_commit', 'on', true), set_config('lock_timeout', %(lock_timeout)s, true)

-- name: inbox_finish
-- why: the first statement of an effectful handler's own transaction. Its row lock shuts out a take-over until COMMIT;
--      a worker that lost its lease gets no row and writes nothing. A lapsed lease that nobody took over may finish.
-- locks: the row
-- index: inbox_pkey, intents_pkey
UPDATE {schema}.inbox
   SET state = 'done', lease_until = NULL
 WHERE consumer = %(consumer)s AND message_id = %(message_id)s AND state = 'pending' AND token = %(token)s
RETURNING (SELECT count(*) FROM {schema}.intents AS t
            WHERE t.consumer = %(consumer)s AND t.message_id = %(message_id)s) AS intents,
          (SELECT count(*) FROM {schema}.intents AS t
            WHERE t.consumer = %(consumer)s AND t.message_id = %(message_id)s AND t.state <> 'done') AS intents_open,
          pg_current_xact_id()::text AS transaction,
          ARRAY (SELECT 'DEALLOCATE ' || quote_ident(s.name) FROM pg_prepared_statement() AS s WHERE s.from_sql
                  UNION ALL SELECT 'CLOSE ALL' FROM pg_cursor() AS c WHERE c.is_holdable
                  UNION ALL SELECT 'DISCARD TEMP' WHERE pg_my_temp_schema() <> 0) AS cleaning,
          set_config('synchronous_commit', 'on', true), set_config('lock_timeout', %(lock_timeout)s, true)

-- name: inbox_committed
-- why: was the transaction of a take or a finish committed, although we did not commit it? After a handler has ended it and
--      then failed, or lost the connection, the session can no longer tell; the row that was written in it can. Not
--      pg_xact_status: a server that crashed may give the id of an uncommitted transaction to another one.
-- locks: none
-- index: inbox_pkey
SELECT EXISTS (SELECT 1 FROM {schema}.inbox
                WHERE consumer = %(consumer)s AND message_id = %(message_id)s AND state = 'done' AND token = %(token)s
                  AND worker = %(worker)s AND xmin = %(transaction)s::xid8::xid)

-- name: inbox_extend
-- why: the heartbeat of all effectful deliveries that this process holds. SKIP LOCKED: a row that is being finished is
--      left alone, so that one slow commit does not stall the others' leases.
-- locks: the rows that are free
-- index: inbox_pkey
WITH held AS (
    SELECT i.consumer, i.message_id
      FROM unnest(%(message_ids)s::uuid[], %(tokens)s::bigint[]) AS h (message_id, token)
      JOIN {schema}.inbox AS i ON i.consumer = %(consumer)s AND i.message_id = h.message_id
     WHERE i.state = 'pending' AND i.token = h.token
       FOR UPDATE OF i SKIP LOCKED
)
UPDATE {schema}.inbox AS i
   SET lease_until = clock_timestamp() + make_interval(secs => %(lease_seconds)s)
  FROM held
 WHERE i.consumer = held.consumer AND i.message_id = held.message_id
RETURNING i.message_id

-- name: inbox_lost
-- why: of the rows that a heartbeat could not extend, those that are truly another's now (the rest are being finished).
-- locks: none
-- index: inbox_pkey
SELECT h.message_id
  FROM unnest(%(message_ids)s::uuid[], %(tokens)s::bigint[]) AS h (message_id, token)
  LEFT JOIN {schema}.inbox AS i ON i.consumer = %(consumer)s AND i.message_id = h.message_id
 WHERE i.token IS DISTINCT FROM h.token OR i.state IN ('parked', 'discarded')

-- name: inbox_give_back
-- why: the holder gives its claim back without a failure (deferred, key in flight at the provider, database lost). The
--      take is forgiven, because it did not end in a crash.
-- locks: the row
-- index: inbox_pkey
UPDATE {schema}.inbox
   SET lease_until = NULL, forgiven = forgiven + 1
 WHERE consumer = %(consumer)s AND message_id = %(message_id)s AND state = 'pending' AND token = %(token)s
RETURNING token

-- name: fail_held
-- why: a failed attempt of the holder of a claim: counted, and the lease given back so that the retry may take over. A lost
--      session is counted apart: it costs no attempt, but must not happen without end.
-- locks: the inbox row, the attempts row
-- index: inbox_pkey, attempts_pkey
WITH mine AS (
    UPDATE {schema}.inbox
       SET lease_until = NULL, forgiven = forgiven + 1
     WHERE consumer = %(consumer)s AND message_id = %(message_id)s AND state = 'pending' AND token = %(token)s
    RETURNING consumer, message_id
)
INSERT INTO {schema}.attempts AS a (consumer, message_id, n, sessions_lost, error)
SELECT consumer, message_id, %(failed)s, %(session_lost)s, %(error)s FROM mine
ON CONFLICT (consumer, message_id) DO UPDATE
   SET n = a.n + excluded.n, sessions_lost = a.sessions_lost + excluded.sessions_lost, error = excluded.error,
       failed_at = clock_timestamp()
RETURNING n, sessions_lost, set_config('synchronous_commit', 'on', true)

-- name: fail_absent
-- why: a failed attempt of a transactional handler: its inbox row was rolled back, so there must be none. A row that is
--      there belongs to somebody who was faster.
-- locks: the attempts row
-- index: inbox_pkey, attempts_pkey
INSERT INTO {schema}.attempts AS a (consumer, message_id, n, sessions_lost, error)
SELECT %(consumer)s, %(message_id)s, %(failed)s, %(session_lost)s, %(error)s
 WHERE NOT EXISTS (SELECT 1 FROM {schema}.inbox WHERE consumer = %(consumer)s AND message_id = %(message_id)s)
ON CONFLICT (consumer, message_id) DO UPDATE
   SET n = a.n + excluded.n, sessions_lost = a.sessions_lost + excluded.sessions_lost, error = excluded.error,
       failed_at = clock_timestamp()
RETURNING n, sessions_lost, set_config('synchronous_commit', 'on', true)

-- name: excuse
-- why: a transactional message was released without a failure, so there is no row in which its take could be forgiven. Its
--      queue has counted the delivery all the same, and too many counted deliveries are poison.
-- locks: the attempts row
-- index: attempts_pkey
INSERT INTO {schema}.attempts AS a (consumer, message_id, n, excused, error)
VALUES (%(consumer)s, %(message_id)s, 0, 1, %(error)s)
ON CONFLICT (consumer, message_id) DO UPDATE SET excused = a.excused + 1, failed_at = clock_timestamp()

-- name: excused
-- why: how many of these deliveries did not end in a crash; asked only where the queue's count is beyond the limit.
-- locks: none
-- index: attempts_pkey
SELECT excused FROM {schema}.attempts WHERE consumer = %(consumer)s AND message_id = %(message_id)s

-- name: park_held
-- why: the holder parks its message: fenced by state and token; no row back = the lease was lost, nothing is written.
--      The intent whose outcome nobody knows is named in the same statement.
-- locks: the inbox row, the intent, the parked row
-- index: inbox_pkey, intents_pkey, parked_pkey
WITH mine AS (
    UPDATE {schema}.inbox
       SET state = 'parked', lease_until = NULL
     WHERE consumer = %(consumer)s AND message_id = %(message_id)s AND state = 'pending' AND token = %(token)s
    RETURNING consumer, message_id
), held AS (
    UPDATE {schema}.intents AS t
       SET state = 'unknown'
      FROM mine
     WHERE t.consumer = mine.consumer AND t.message_id = mine.message_id AND t.n = %(unknown_n)s AND t.state = 'pending'
)
INSERT INTO {schema}.parked AS p (consumer, message_id, fingerprint, reason, detail, attempts, source, headers, body)
SELECT %(consumer)s, %(parked_id)s, %(fingerprint)s, %(reason)s, %(detail)s,
       coalesce((SELECT n FROM {schema}.attempts AS a
                  WHERE a.consumer = %(consumer)s AND a.message_id = %(message_id)s), 0),
       %(source)s, %(headers)s, %(body)s
  FROM mine
ON CONFLICT (consumer, message_id, fingerprint) DO UPDATE
   SET reason = excluded.reason, detail = excluded.detail, attempts = excluded.attempts, parked_at = clock_timestamp()
RETURNING message_id, set_config('synchronous_commit', 'on', true)

-- name: park_absent
-- why: a transactional message is parked after its own row was rolled back: the inbox row is made, as parked, only if
--      there is none.
-- locks: the new inbox row, the parked row
-- index: inbox_pkey, parked_pkey
WITH mine AS (
    INSERT INTO {schema}.inbox (consumer, message_id, fingerprint, state, worker)
    VALUES (%(consumer)s, %(message_id)s, %(fingerprint)s, 'parked', %(worker)s)
    ON CONFLICT (consumer, message_id) DO NOTHING
    RETURNING consumer, message_id
)
INSERT INTO {schema}.parked AS p (consumer, message_id, fingerprint, reason, detail, attempts, source, headers, body)
SELECT %(consumer)s, %(parked_id)s, %(fingerprint)s, %(reason)s, %(detail)s,
       coalesce((SELECT n FROM {schema}.attempts AS a
                  WHERE a.consumer = %(consumer)s AND a.message_id = %(message_id)s), 0),
       %(source)s, %(headers)s, %(body)s
  FROM mine
ON CONFLICT (consumer, message_id, fingerprint) DO UPDATE
   SET reason = excluded.reason, detail = excluded.detail, attempts = excluded.attempts, parked_at = clock_timestamp()
RETURNING message_id, set_config('synchronous_commit', 'on', true)

-- name: park_foreign_commit
-- why: the handler ended our transaction by itself, so what it wrote may stand, the row as done included: a person must
--      look. Where it rolled back, the row is gone, or is as it was before the take (token - 1): the message is parked all
--      the same, or the next delivery would run the handler again.
-- locks: the inbox row, the parked row
-- index: inbox_pkey, parked_pkey
WITH mine AS (
    INSERT INTO {schema}.inbox AS i (consumer, message_id, fingerprint, state, token, worker)
    VALUES (%(consumer)s, %(message_id)s, %(fingerprint)s, 'parked', %(token)s, %(worker)s)
    ON CONFLICT (consumer, message_id) DO UPDATE SET state = 'parked', lease_until = NULL
     WHERE i.fingerprint = excluded.fingerprint
       AND (i.token = excluded.token OR (i.token = excluded.token - 1 AND i.state = 'pending'))
)
INSERT INTO {schema}.parked AS p (consumer, message_id, fingerprint, reason, detail, attempts, source, headers, body)
VALUES (%(consumer)s, %(parked_id)s, %(fingerprint)s, %(reason)s, %(detail)s, 0, %(source)s, %(headers)s, %(body)s)
ON CONFLICT (consumer, message_id, fingerprint) DO UPDATE
   SET reason = excluded.reason, detail = excluded.detail, parked_at = clock_timestamp()
RETURNING message_id, set_config('synchronous_commit', 'on', true)

-- name: park_beside
-- why: parked without touching any inbox row: another payload under a known id, an id outside the window, no id at all,
--      a second answer, found by a worker that holds nothing.
-- locks: the parked row
-- index: parked_pkey
INSERT INTO {schema}.parked AS p (consumer, message_id, fingerprint, reason, detail, attempts, source, headers, body)
VALUES (%(consumer)s, %(parked_id)s, %(fingerprint)s, %(reason)s, %(detail)s, 0, %(source)s, %(headers)s, %(body)s)
ON CONFLICT (consumer, message_id, fingerprint) DO UPDATE
   SET reason = excluded.reason, detail = excluded.detail, parked_at = clock_timestamp()
RETURNING message_id, set_config('synchronous_commit', 'on', true)

-- name: park_outside
-- why: an id outside the window is parked without an inbox row, and only if there is none: since the take, a slow
--      worker or a redrive may have made one, and then that decides (no row back: leave; the redelivery looks again).
-- locks: the parked row
-- index: inbox_pkey, parked_pkey
INSERT INTO {schema}.parked AS p (consumer, message_id, fingerprint, reason, detail, attempts, source, headers, body)
SELECT %(consumer)s, %(parked_id)s, %(fingerprint)s, %(reason)s, %(detail)s, 0, %(source)s, %(headers)s, %(body)s
 WHERE NOT EXISTS (SELECT 1 FROM {schema}.inbox WHERE consumer = %(consumer)s AND message_id = %(message_id)s)
ON CONFLICT (consumer, message_id, fingerprint) DO UPDATE
   SET reason = excluded.reason, detail = excluded.detail, parked_at = clock_timestamp()
RETURNING message_id, set_config('synchronous_commit', 'on', true)
