-- name: rights
-- why: what the role of this session may do with our tables, asked at the start: later, a missing right would look like an
--      outage. has_*_privilege and pg_has_role need no right of their own, not even on the schema.
-- locks: none
-- index: none
SELECT current_user::text AS role,
       has_schema_privilege(n.oid, 'USAGE') AS may_use,
       has_schema_privilege(n.oid, 'CREATE') AS may_create,
       ARRAY(SELECT c.relname::text
               FROM pg_class AS c
              WHERE c.relnamespace = n.oid AND c.relname = ANY (%(written)s)
                AND NOT (has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
                         AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE'))
              ORDER BY c.relname) AS not_written,
       ARRAY(SELECT c.relname::text
               FROM pg_class AS c
              WHERE c.relnamespace = n.oid AND c.relname = ANY (%(read)s) AND NOT has_table_privilege(c.oid, 'SELECT')
              ORDER BY c.relname) AS not_read,
       ARRAY(SELECT DISTINCT pg_get_userbyid(c.relowner)::text
               FROM pg_class AS c
              WHERE c.relnamespace = n.oid AND c.relname ~ '^((inbox|intents)(_p[0-9]+)?|retired)$'
                AND c.relkind IN ('r', 'p') AND NOT pg_has_role(c.relowner, 'USAGE')) AS owners
  FROM pg_namespace AS n
 WHERE n.nspname = %(schema)s
