-- name: decide_read
-- why: what is parked under an id, and the inbox row that must be there, parked and of the same payload, for a message that
--      is to go on. Its answer only serves to choose, and to say why not; redrive_inbox repeats the condition.
-- locks: the parked rows (a second decision waits, and then finds them gone)
-- index: parked_pkey, inbox_pkey
SELECT p.fingerprint, p.reason, p.headers, p.body, i.state AS inbox_state, i.fingerprint = p.fingerprint AS same_payload
  FROM {schema}.parked AS p
  LEFT JOIN {schema}.inbox AS i ON i.consumer = p.consumer AND i.message_id = %(message_id)s
 WHERE p.consumer = %(consumer)s AND p.message_id = %(parked_id)s
 ORDER BY p.parked_at
   FOR UPDATE OF p

-- name: redrive_inbox
-- why: parked becomes pending, under a new token (the worker that held it before is fenced out), its takes forgiven.
-- locks: the row
-- index: inbox_pkey
UPDATE {schema}.inbox
   SET state = 'pending', token = token + 1, forgiven = token + 1, lease_until = NULL
 WHERE consumer = %(consumer)s AND message_id = %(message_id)s AND state = 'parked' AND fingerprint = %(fingerprint)s
RETURNING token, set_config('synchronous_commit', 'on', true)

-- name: redrive_delete_attempts
-- why: a redriven message starts with no attempts.
-- locks: the row
-- index: attempts_pkey
DELETE FROM {schema}.attempts WHERE consumer = %(consumer)s AND message_id = %(message_id)s

-- name: decide_intents
-- why: the effects of the message that is decided about, and for how long the provider may still act under each key. NULL:
--      nobody knows, because the intent is older than the column (greatest() alone would make 0 of that).
-- locks: the intents
-- index: intents_pkey
SELECT n, name, state, refused, key, generation, answer::text AS answer,
       CASE WHEN window_seconds IS NOT NULL THEN
           greatest(extract(epoch FROM started_at + make_interval(secs => window_seconds) - clock_timestamp())::float8, 0)
       END AS acting_seconds
  FROM {schema}.intents
 WHERE consumer = %(consumer)s AND message_id = %(message_id)s
 ORDER BY n
   FOR UPDATE

-- name: settle_intent
-- why: a person knows the answer: recorded as the call itself would have been.
-- locks: the intent (held)
-- index: intents_pkey
UPDATE {schema}.intents
   SET state = 'done', answer = %(answer)s, refused = %(refused)s, answered_at = clock_timestamp()
 WHERE consumer = %(consumer)s AND message_id = %(message_id)s AND n = %(n)s AND state IN ('pending', 'unknown')

-- name: reopen_intent
-- why: the effect did not happen: it begins again under another key, whose window begins now. The former keys follow from
--      the generation; they are looked up once more before the call.
-- locks: the intent (held)
-- index: intents_pkey
UPDATE {schema}.intents
   SET state = 'pending', answer = NULL, refused = false, answered_at = NULL, started_at = clock_timestamp(),
       generation = generation + 1, key = %(key)s
 WHERE consumer = %(consumer)s AND message_id = %(message_id)s AND n = %(n)s
   AND (state IN ('pending', 'unknown') OR (state = 'done' AND refused))
RETURNING n

-- name: discard_inbox
-- why: the message is over without having been handled, and so are its effects that have no answer. The new token fences
--      out the worker that held it before. What is parked beside another payload's row, or beside one that is done, leaves
--      that row alone. The window of an untimed id begins anew, so that a late copy is turned away as long as any other's.
-- locks: the inbox row, the intents
-- index: inbox_pkey, intents_pkey
WITH over AS (
    UPDATE {schema}.inbox
       SET state = 'discarded', token = token + 1, lease_until = NULL, taken_at = clock_timestamp()
     WHERE consumer = %(consumer)s AND message_id = %(message_id)s AND state = 'parked' AND fingerprint = %(fingerprint)s
    RETURNING consumer, message_id
)
UPDATE {schema}.intents AS t
   SET state = 'discarded'
  FROM over
 WHERE t.consumer = over.consumer AND t.message_id = over.message_id AND t.state IN ('pending', 'unknown')

-- name: decide
-- why: the parked row goes, and the decision about it stays, in the transaction that carries it out. A discarded body is
--      kept here, because it is kept nowhere else. json_build_object, not to_jsonb: headers may hold what jsonb cannot.
-- locks: the parked row (held)
-- index: parked_pkey
WITH gone AS (
    DELETE FROM {schema}.parked
     WHERE consumer = %(consumer)s AND message_id = %(parked_id)s AND fingerprint = %(fingerprint)s
    RETURNING *
)
INSERT INTO {schema}.decisions (about, decision, consumer, message_id, fingerprint, effect, answer, former_key, forced, reason,
                                decided_by, was, body)
SELECT 'parked', %(decision)s, gone.consumer, gone.message_id, gone.fingerprint, %(effect)s, %(answer)s, %(former_key)s,
       %(forced)s, %(reason)s, coalesce(nullif(%(decided_by)s, ''), session_user),
       json_build_object('reason', gone.reason, 'detail', gone.detail, 'attempts', gone.attempts, 'source', gone.source,
                         'headers', gone.headers, 'parked_at', gone.parked_at),
       CASE WHEN %(decision)s = 'discard' THEN gone.body END
  FROM gone
RETURNING id, set_config('synchronous_commit', 'on', true)

-- name: decisions_list
-- why: who decided what, newest first, bounded.
-- locks: none
-- index: decisions_pkey
SELECT id, about, decision AS kind, consumer, message_id, position, effect, answer::text AS answer, former_key, forced, reason,
       decided_by, database_role, decided_at, was
  FROM {schema}.decisions
 WHERE %(consumer)s::text IS NULL OR consumer = %(consumer)s
 ORDER BY id DESC
 LIMIT %(limit)s

-- name: decisions_about
-- why: who decided what about one message, newest first, bounded.
-- locks: none
-- index: decisions_message
SELECT id, about, decision AS kind, consumer, message_id, position, effect, answer::text AS answer, former_key, forced, reason,
       decided_by, database_role, decided_at, was
  FROM {schema}.decisions
 WHERE message_id = %(message_id)s AND (%(consumer)s::text IS NULL OR consumer = %(consumer)s)
 ORDER BY id DESC
 LIMIT %(limit)s

-- name: look_up_intents
-- why: what the handler of a parked message is shown when it is asked for its own look-up.
-- locks: none
-- index: intents_pkey
SELECT name, request_fingerprint, key, generation, refused, answer::text AS answer
  FROM {schema}.intents
 WHERE consumer = %(consumer)s AND message_id = %(message_id)s
 ORDER BY n

-- name: parked_beginning
-- why: a person has typed only the beginning of an id: what it may have been. A UUIDv7 is stored in small
--      letters, any other id as it is written. Rare, so it may read the whole table.
-- locks: none
-- index: none
SELECT DISTINCT message_id
  FROM {schema}.parked
 WHERE starts_with(message_id, %(beginning)s) OR starts_with(message_id, lower(%(beginning)s))
 ORDER BY message_id
 LIMIT 5
