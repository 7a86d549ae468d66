-- An end for everything that is held. What a person decides about a parked message or an outbox row is a row, written in the
-- transaction that carries the decision out, and kept until somebody deletes it.

CREATE TABLE {schema}.decisions (
    id             bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    about          text        NOT NULL CONSTRAINT decisions_about CHECK (about IN ('parked', 'outbox')),
    decision       text        NOT NULL CONSTRAINT decisions_decision
                   CHECK (decision IN ('redrive', 'settle', 'did not happen', 'discard', 'retry')),
    consumer       text,                            -- of a parked message; NULL: an outbox row
    message_id     text        NOT NULL,
    fingerprint    bytea,                           -- of a parked message
    position       bigint,                          -- of an outbox row
    effect         text,                            -- whose outcome was decided
    answer         json,                            -- settle: what was recorded; did not happen: the refusal before
    former_key     text,                            -- did not happen: the idempotency key that is not used any more
    forced         boolean     NOT NULL DEFAULT false,  -- decided although the provider might still act under that key
    reason         text        NOT NULL,            -- why; of a discard never empty
    decided_by     text        NOT NULL CONSTRAINT decisions_by CHECK (decided_by <> ''),
    database_role  text        NOT NULL DEFAULT session_user,
    decided_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    was            json        NOT NULL,            -- what was held, as it was: all of its columns but the body
    body           bytea                            -- of what was discarded: it is kept nowhere else
);
CREATE INDEX decisions_message ON {schema}.decisions (message_id);
CREATE INDEX decisions_age ON {schema}.decisions (decided_at);

-- A discarded message is over, as a done one is, and does not keep its day from being dropped. NOT VALID: the rows that are
-- there satisfied the narrower check, so nothing need be read while the table is locked.
ALTER TABLE {schema}.inbox DROP CONSTRAINT inbox_state;
ALTER TABLE {schema}.inbox ADD CONSTRAINT inbox_state
      CHECK (state IN ('pending', 'done', 'parked', 'discarded')) NOT VALID;
ALTER TABLE {schema}.inbox_untimed DROP CONSTRAINT inbox_untimed_state;
ALTER TABLE {schema}.inbox_untimed ADD CONSTRAINT inbox_untimed_state
      CHECK (state IN ('pending', 'done', 'parked', 'discarded')) NOT VALID;
ALTER TABLE {schema}.intents DROP CONSTRAINT intents_state;
ALTER TABLE {schema}.intents ADD CONSTRAINT intents_state
      CHECK (state IN ('pending', 'done', 'unknown', 'discarded')) NOT VALID;

-- An effect that did not happen, as a person has decided, is called under another key: its next generation. For
-- `window_seconds` after `started_at` the provider may still act under the key; NULL: the intent is older than this column,
-- so nobody knows.
ALTER TABLE {schema}.intents ADD COLUMN generation integer NOT NULL DEFAULT 1;
ALTER TABLE {schema}.intents ADD COLUMN window_seconds float8;

-- A row that was refused too often is set aside: no relay takes it, and it holds nothing up, until somebody decides.
ALTER TABLE {schema}.outbox ADD COLUMN set_aside_at timestamptz;
CREATE INDEX outbox_set_aside ON {schema}.outbox (set_aside_at) WHERE set_aside_at IS NOT NULL;
