-- name: parked_list
-- why: what a person looks at when paged; newest first, bounded. Of the detail only the first line, without the traceback.
-- locks: none
-- index: parked_age
SELECT consumer, message_id, encode(fingerprint, 'hex') AS fingerprint, reason, left(split_part(detail, E'\n', 1), 500) AS detail, attempts,
       source, parked_at,
       headers->>'type' AS type, headers->>'subject' AS subject, length(body) AS body_bytes
  FROM {schema}.parked
 WHERE %(consumer)s::text IS NULL OR consumer = %(consumer)s
 ORDER BY parked_at DESC
 LIMIT %(limit)s

-- name: parked_show
-- why: one message whole; two bodies under one id are two rows, and so are two consumers.
-- locks: none
-- index: parked_message
SELECT p.consumer, p.message_id, encode(p.fingerprint, 'hex') AS fingerprint, p.reason, p.detail, p.attempts, p.source,
       p.parked_at, p.headers->>'type' AS type, p.headers->>'subject' AS subject, length(p.body) AS body_bytes,
       p.headers, p.body
  FROM {schema}.parked AS p
 WHERE p.message_id = %(message_id)s AND (%(consumer)s::text IS NULL OR p.consumer = %(consumer)s)
 ORDER BY p.consumer, p.parked_at

-- name: parked_intents
-- why: the effects of a parked message: which are done, and of which nobody knows the outcome.
-- locks: none
-- index: intents_pkey
SELECT n, name, state, refused, key, answer::text AS answer, started_at
  FROM {schema}.intents
 WHERE consumer = %(consumer)s AND message_id = %(message_id)s
 ORDER BY n

-- name: redrive_read
-- why: what is parked under an id, and the inbox row that must be there, parked and of the same payload, for a redrive.
--      Its answer only serves to choose, and to say why not; redrive_inbox repeats the condition.
-- locks: the parked rows (a second redrive waits, and then finds them gone)
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

-- name: redrive_delete_parked
-- why: the parked row goes in the transaction that puts the message back on its way.
-- locks: the row
-- index: parked_pkey
DELETE FROM {schema}.parked
 WHERE consumer = %(consumer)s AND message_id = %(parked_id)s AND fingerprint = %(fingerprint)s
RETURNING message_id
