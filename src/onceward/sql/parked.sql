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
SELECT n, name, state, refused, key, generation, answer::text AS answer, started_at
  FROM {schema}.intents
 WHERE consumer = %(consumer)s AND message_id = %(message_id)s
 ORDER BY n
