-- name: rights
-- why: what the role of this session may do with our tables, asked at the start: later, a missing right would look like an
--      outage. has_*_privilege and pg_has_role need no right of their own, not even on the schema. `missing` are places in the
--      two lists, from 1. To read a table, some of its columns may be enough: the outbox's age needs no message.
-- locks: none
-- index: none
SELECT current_user::text AS role,
       has_schema_privilege(n.oid, 'USAGE') AS may_use,
       has_schema_privilege(n.oid, 'CREATE') AS may_create,
       ARRAY(SELECT needed.position::integer
               FROM unnest(%(tables)s::text[], %(rights)s::text[]) WITH ORDINALITY AS needed (table_name, right_name, position)
               JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = needed.table_name
              WHERE NOT CASE needed.right_name WHEN 'SELECT' THEN has_any_column_privilege(c.oid, 'SELECT')
                                               ELSE has_table_privilege(c.oid, needed.right_name) END
              ORDER BY needed.position) AS missing,
       ARRAY(SELECT DISTINCT pg_get_userbyid(c.relowner)::text
               FROM pg_class AS c
              WHERE c.relnamespace = n.oid AND c.relname ~ '^(inbox|intents)(_p[0-9]+)?$'
                AND c.relkind IN ('r', 'p') AND NOT pg_has_role(c.relowner, 'USAGE')) AS owners
  FROM pg_namespace AS n
 WHERE n.nspname = %(schema)s
