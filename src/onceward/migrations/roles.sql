-- Four roles for the tables of schema {schema}, each with what it needs and nothing more. Their members are your own roles:
--     GRANT {prefix}_consumer TO shop_app;
-- Run it as the owner of the tables with the right to create roles, or as a superuser; after every upgrade again. Running it
-- twice changes nothing. Rights that somebody else gave these four on our tables are taken away.

-- Two that run this at once: the second waits.
LOCK TABLE {schema}.migrations IN SHARE ROW EXCLUSIVE MODE;

-- A role belongs to the whole server, so it may be there already: of another schema or database with the same prefix.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['{prefix}_consumer', '{prefix}_relay', '{prefix}_upkeep', '{prefix}_reader'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
    END LOOP;
END $$;

REVOKE ALL ON SCHEMA {schema} FROM {roles};
REVOKE ALL ON {tables} FROM {roles};
REVOKE ALL ON SEQUENCE {sequences} FROM {roles};

GRANT USAGE ON SCHEMA {schema} TO {prefix}_consumer, {prefix}_relay, {prefix}_reader;
GRANT SELECT ON {schema}.migrations TO {roles};

-- consumer: `onceward run --no-upkeep`, `Consumer.open(upkeep=False)`, `Inbox`, `Intents`, `publish`. Of the outbox, it sees how
-- old the oldest row is, and no message.
GRANT SELECT, INSERT, UPDATE ON {schema}.inbox TO {prefix}_consumer;
GRANT SELECT, INSERT, UPDATE ON {schema}.intents TO {prefix}_consumer;
GRANT SELECT, INSERT, UPDATE ON {schema}.attempts TO {prefix}_consumer;
GRANT SELECT, INSERT, UPDATE ON {schema}.parked TO {prefix}_consumer;
GRANT SELECT, INSERT, UPDATE ON {schema}.consumers TO {prefix}_consumer;
GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.handler_times TO {prefix}_consumer;
GRANT INSERT, SELECT (position, created_at, set_aside_at) ON {schema}.outbox TO {prefix}_consumer;
GRANT SELECT ON {schema}.retired TO {prefix}_consumer;

-- relay: `onceward relay`. The sequence tells whether a failover has set positions back.
GRANT SELECT, UPDATE, DELETE ON {schema}.outbox TO {prefix}_relay;
GRANT SELECT ON SEQUENCE {schema}.outbox_position_seq TO {prefix}_relay;

-- upkeep: `onceward upkeep`. It makes and drops the partitions of inbox and intents, and so owns both (below).
GRANT USAGE, CREATE ON SCHEMA {schema} TO {prefix}_upkeep;
GRANT ALL ON {schema}.inbox, {schema}.intents TO {prefix}_upkeep;
GRANT SELECT, UPDATE ON {schema}.retired TO {prefix}_upkeep;
GRANT SELECT, DELETE ON {schema}.consumers TO {prefix}_upkeep;
GRANT SELECT, DELETE ON {schema}.attempts TO {prefix}_upkeep;

-- reader: `onceward status`, and what lists and shows; the bodies of messages, too.
GRANT SELECT ON {tables} TO {prefix}_reader;

-- In Postgres, only the owner of a table may make and drop its partitions: no grant gives that right. So upkeep's role owns
-- inbox and intents, with their partitions, and nothing else. The owner of the schema's other tables becomes a member of it:
-- migrations go on as before. The first run waits for handlers that are open, for as long as lock_timeout allows.
DO $$
DECLARE
    owner text;
    name text;
BEGIN
    SELECT pg_get_userbyid(relowner) INTO owner FROM pg_class WHERE oid = '{schema}.migrations'::regclass;
    -- A superuser has the rights of every role, and a role those of its own.
    IF NOT pg_has_role(owner, '{prefix}_upkeep', 'USAGE') THEN
        EXECUTE format('GRANT {prefix}_upkeep TO %I', owner);
    END IF;
    -- The parents first, as whoever uses them locks them.
    FOR name IN
        SELECT c.relname
          FROM pg_class AS c
         WHERE c.relnamespace = '{schema}'::regnamespace AND c.relkind IN ('r', 'p')
           AND c.relname ~ '^(inbox|intents)(_p[0-9]+|_untimed)?$' AND c.relowner <> '{prefix}_upkeep'::regrole
         ORDER BY c.relkind = 'r', c.relname
    LOOP
        EXECUTE format('ALTER TABLE {schema}.%I OWNER TO {prefix}_upkeep', name);
    END LOOP;
END $$;
