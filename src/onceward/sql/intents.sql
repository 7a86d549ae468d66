-- name: intent_insert
-- why: the intent is committed before the call. FOR SHARE keeps the claim as it is: no take-over between the check of
--      lease and token and the INSERT. held = false: the lease is lost or lapsed, and the effect must not start. Durable
--      whatever the session's settings are: an intent that a crash takes back would mean a second call.
-- locks: the inbox row (share), the new intent
-- index: inbox_pkey, intents_pkey
WITH held AS (
    SELECT i.consumer, i.message_id
      FROM {schema}.inbox AS i
     WHERE i.consumer = %(consumer)s AND i.message_id = %(message_id)s AND i.state = 'pending'
       AND i.token = %(token)s AND i.lease_until > clock_timestamp()
       FOR SHARE
), made AS (
    INSERT INTO {schema}.intents (consumer, message_id, n, name, request_fingerprint, key, window_seconds)
    SELECT consumer, message_id, %(n)s, %(name)s, %(request_fingerprint)s, %(key)s, %(acting_seconds)s FROM held
    ON CONFLICT (consumer, message_id, n) DO NOTHING
    RETURNING n
)
SELECT EXISTS (SELECT 1 FROM held) AS held, EXISTS (SELECT 1 FROM made) AS made,
       set_config('synchronous_commit', 'on', true)

-- name: intent_read
-- why: the intent was there already: its answer, or whether the provider still remembers its key (database's clock). A
--      provider without keys (0 seconds) never does, even if the clock was set back meanwhile.
-- locks: none
-- index: intents_pkey
SELECT name, request_fingerprint, key, generation, state, refused, answer::text AS answer,
       %(callable_seconds)s::float8 > 0
       AND clock_timestamp() < started_at + make_interval(secs => %(callable_seconds)s) AS callable
  FROM {schema}.intents
 WHERE consumer = %(consumer)s AND message_id = %(message_id)s AND n = %(n)s

-- name: intent_begin_unkeyed
-- why: a person has decided that the effect did not happen, and its provider knows no keys: it may be called once more. From
--      here on it is unknown whether it happened, so a redelivery looks it up and does not call again; the provider may act
--      from now on, so its time begins now. Fenced as intent_insert is: only the holder of the claim begins.
-- locks: the inbox row (share), the intent
-- index: inbox_pkey, intents_pkey
WITH held AS (
    SELECT i.consumer, i.message_id
      FROM {schema}.inbox AS i
     WHERE i.consumer = %(consumer)s AND i.message_id = %(message_id)s AND i.state = 'pending'
       AND i.token = %(token)s AND i.lease_until > clock_timestamp()
       FOR SHARE
)
UPDATE {schema}.intents AS t
   SET state = 'unknown', started_at = clock_timestamp()
  FROM held
 WHERE t.consumer = %(consumer)s AND t.message_id = %(message_id)s AND t.n = %(n)s AND t.state = 'pending'
   AND t.generation > 1
RETURNING t.n, set_config('synchronous_commit', 'on', true)

-- name: intent_record
-- why: an answer is a fact: write-once, and not fenced, because a zombie's known charge must not be thrown away. It is the
--      effect's answer whatever the key under which it was called: if a person has decided meanwhile that it did not happen,
--      this answer keeps it from being called once more. Only a refusal counts for its own key alone: under the new one, the
--      effect may have been accepted.
-- locks: the intent
-- index: intents_pkey
UPDATE {schema}.intents
   SET state = 'done', answer = %(answer)s, refused = %(refused)s, answered_at = clock_timestamp()
 WHERE consumer = %(consumer)s AND message_id = %(message_id)s AND n = %(n)s AND state IN ('pending', 'unknown')
   AND (NOT %(refused)s OR %(key)s::text IS NULL OR key = %(key)s)
RETURNING n, set_config('synchronous_commit', 'on', true)
