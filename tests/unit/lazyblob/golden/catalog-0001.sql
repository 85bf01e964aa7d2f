INSERT INTO repository
    (id, uuid, format_version, dedupe_scope, chunk_store, secret, glance_store, created_at)
    VALUES (1, 'a17d9456-1e6a-432f-8106-d94426790c5e', 1, 'repository', 'file:///chunks', 'bcaee799e8b6bcf62f46b0c413235c124934430ce806e338d19ac3a6b0577418', NULL, '2026-11-21 13:41:47.000000');
INSERT INTO blobs
    (id, name, kind, state, project_id, chunk_size_bytes, scope, epoch, head, pinned, secret, origin, origin_version, created_at, deleted_at)
    VALUES ('image', 'debian', 'image', 'active', 'p1', 524288, 'repository', 1, 1, 0, '', '', 0, '2026-11-21 13:41:47.000000', NULL);
INSERT INTO blobs
    (id, name, kind, state, project_id, chunk_size_bytes, scope, epoch, head, pinned, secret, origin, origin_version, created_at, deleted_at)
    VALUES ('deleted', NULL, 'image', 'tombstone', 'p1', 524288, 'repository', 2, 1, 0, '', '', 0, '2026-11-21 13:41:47.000000', '2026-11-21 13:41:47.000000');
INSERT INTO blobs
    (id, name, kind, state, project_id, chunk_size_bytes, scope, epoch, head, pinned, secret, origin, origin_version, created_at, deleted_at)
    VALUES ('disk', NULL, 'disk', 'active', 'p1', 524288, 'repository', 2, 3, 1, '2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b', 'image', 1, '2026-11-21 13:41:47.000000', NULL);
INSERT INTO blobs
    (id, name, kind, state, project_id, chunk_size_bytes, scope, epoch, head, pinned, secret, origin, origin_version, created_at, deleted_at)
    VALUES ('snapshot', 'my snapshot', 'image', 'provisional', 'p9', 524288, 'repository', 1, 1, 0, '', 'disk', 2, '2026-11-21 13:41:47.000000', NULL);
INSERT INTO versions
    (blob_id, number, root, size_bytes, project_id, commit_id, created_at)
    VALUES ('image', 1, 'abababababababababababababababababababababababababababababababab', 10485760, 'p1', 'upload of image', '2026-11-21 13:41:47.000000');
INSERT INTO versions
    (blob_id, number, root, size_bytes, project_id, commit_id, created_at)
    VALUES ('disk', 1, 'abababababababababababababababababababababababababababababababab', 10485760, 'p1', 'clone:1', '2026-11-21 13:41:47.000000');
INSERT INTO versions
    (blob_id, number, root, size_bytes, project_id, commit_id, created_at)
    VALUES ('snapshot', 1, 'cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd', 10485760, 'p9', 'snapshot:2', '2026-11-21 13:41:47.000000');
INSERT INTO versions
    (blob_id, number, root, size_bytes, project_id, commit_id, created_at)
    VALUES ('disk', 2, 'cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd', 10485760, 'p1', 'c1', '2026-11-21 13:41:47.000000');
INSERT INTO versions
    (blob_id, number, root, size_bytes, project_id, commit_id, created_at)
    VALUES ('disk', 3, 'cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd', 10485760, 'p1', 'c2', '2026-11-21 13:41:47.000000');
INSERT INTO sessions
    (id, owner, started_at, ended_at)
    VALUES ('session of image', 'test', '2026-11-21 13:41:47.000000', '2026-11-21 13:41:47.000000');
INSERT INTO sessions
    (id, owner, started_at, ended_at)
    VALUES ('session of deleted', 'test', '2026-11-21 13:41:47.000000', NULL);
INSERT INTO sessions
    (id, owner, started_at, ended_at)
    VALUES ('writer', 'test', '2026-11-21 13:41:47.000000', NULL);
INSERT INTO sessions
    (id, owner, started_at, ended_at)
    VALUES ('abandoned', 'host:1', '2026-11-21 13:41:47.000000', NULL);
INSERT INTO condemned_objects
    (digest, state, condemned_at, deleted_at)
    VALUES ('1212121212121212121212121212121212121212121212121212121212121212', 'condemned', '2026-01-02 03:04:05.000000', NULL);
INSERT INTO bad_digests
    (digest, reporter, reported_at)
    VALUES ('3434343434343434343434343434343434343434343434343434343434343434', 'scrub', '2026-01-02 03:04:05.000000');
