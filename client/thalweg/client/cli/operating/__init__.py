"""Commands of operators: tokens, certificates, backups, the audit log, nodes."""
