"""A file system (FUSE) that passes a directory on, and is read-only while a file exists: as a disk
on which the kernel met a fault, it becomes so under open files, which a remount refuses to do.

Speaks with the kernel directly, so that nothing has to be installed; one thread.
"""
import argparse, ctypes, errno, os, stat, struct, sys

arguments = argparse.ArgumentParser()
arguments.add_argument("--directory", required=True, help="what is passed on")
arguments.add_argument("--at", required=True, help="where it is mounted")
arguments.add_argument("--read-only-while", required=True, help="this file exists")
options = arguments.parse_args()

LOOKUP, FORGET, GETATTR, SETATTR, MKNOD, MKDIR, UNLINK, RMDIR, RENAME = 1, 2, 3, 4, 8, 9, 10, 11, 12
OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, INIT, OPENDIR, READDIR = 14, 15, 16, 17, 18, 20, 26, 27, 28
RELEASEDIR, CREATE, INTERRUPT, BATCH_FORGET, RENAME2 = 29, 35, 36, 42, 45
CHANGES = {MKNOD, MKDIR, UNLINK, RMDIR, RENAME, RENAME2, WRITE, CREATE, SETATTR}
KEEP_CACHE, BIG_WRITES, MAX_WRITE, VALID_S = 2, 32, 128 * 1024, 60
SET_MODE, SET_SIZE = 1, 8

paths = {1: options.directory}
ids = {options.directory: 1}


def attributes(found):
    times = [found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns]
    return struct.pack(
        "<6Q10I", found.st_ino, found.st_size, found.st_blocks, *(t // 10**9 for t in times),
        *(t % 10**9 for t in times), found.st_mode, found.st_nlink, found.st_uid, found.st_gid, 0, 4096, 0,
    )


def entry(path):
    found = os.lstat(path)
    if path not in ids:
        ids[path] = max(paths) + 1
        paths[ids[path]] = path
    return struct.pack("<4Q2I", ids[path], 0, VALID_S, VALID_S, 0, 0) + attributes(found)


def forget_path(path):
    paths.pop(ids.pop(path, None), None)


def text(body):
    return os.fsdecode(body.rstrip(b"\0"))


def opened(path, flags, mode=0):
    return struct.pack("<QII", os.open(path, flags & ~(os.O_EXCL | os.O_APPEND), mode), KEEP_CACHE, 0)


def rename(node, body, new_parent):
    old, new = body.split(b"\0")[:2]
    old, new = os.path.join(paths[node], os.fsdecode(old)), os.path.join(paths[new_parent], os.fsdecode(new))
    os.rename(old, new)
    forget_path(new)
    for path, number in list(ids.items()):
        if path == old or path.startswith(old + "/"):
            del ids[path]
            paths[number] = new + path[len(old):]
            ids[paths[number]] = number
    return b""


def answer(opcode, node, body):
    path = paths.get(node)
    read_only = os.path.exists(options.read_only_while)
    writes = opcode == OPEN and struct.unpack_from("<I", body)[0] & (os.O_WRONLY | os.O_RDWR)
    if read_only and (opcode in CHANGES or writes):
        raise OSError(errno.EROFS, "read-only")
    if opcode == INIT:
        major, minor, read_ahead, _ = struct.unpack_from("<4I", body)
        return struct.pack("<4I2H2I2HI7I", major, min(minor, 31), read_ahead, BIG_WRITES, 16, 12, MAX_WRITE, 1,
                           32, 0, 0, *[0] * 7)
    if opcode == LOOKUP:
        return entry(os.path.join(path, text(body)))
    if opcode == GETATTR:
        flags, _, handle = struct.unpack_from("<IIQ", body)
        return struct.pack("<QII", VALID_S, 0, 0) + attributes(os.fstat(handle) if flags & 1 else os.lstat(path))
    if opcode == SETATTR:
        valid, _, _, size = struct.unpack_from("<IIQQ", body)
        if valid & SET_MODE:
            os.chmod(path, stat.S_IMODE(struct.unpack_from("<I", body, 68)[0]))
        if valid & SET_SIZE:
            os.truncate(path, size)
        return struct.pack("<QII", VALID_S, 0, 0) + attributes(os.lstat(path))
    if opcode == MKNOD:
        made = os.path.join(path, text(body[16:]))
        mode, device = struct.unpack_from("<II", body)
        os.mknod(made, mode, device)
        return entry(made)
    if opcode == MKDIR:
        made = os.path.join(path, text(body[8:]))
        os.mkdir(made, struct.unpack_from("<I", body)[0])
        return entry(made)
    if opcode in (UNLINK, RMDIR):
        gone = os.path.join(path, text(body))
        os.unlink(gone) if opcode == UNLINK else os.rmdir(gone)
        forget_path(gone)
        return b""
    if opcode == RENAME:
        return rename(node, body[8:], struct.unpack_from("<Q", body)[0])
    if opcode == RENAME2:
        return rename(node, body[16:], struct.unpack_from("<Q", body)[0])
    if opcode == CREATE:
        flags, mode = struct.unpack_from("<II", body)
        made = os.path.join(path, text(body[16:]))
        handle = opened(made, flags | os.O_CREAT, mode)
        return entry(made) + handle
    if opcode == OPEN:
        return opened(path, struct.unpack_from("<I", body)[0])
    if opcode == READ:
        handle, offset, size = struct.unpack_from("<QQI", body)
        return os.pread(handle, size, offset)
    if opcode == WRITE:
        handle, offset, size = struct.unpack_from("<QQI", body)
        return struct.pack("<II", os.pwrite(handle, body[40 : 40 + size], offset), 0)
    if opcode == RELEASE:
        os.close(struct.unpack_from("<Q", body)[0])
        return b""
    if opcode == STATFS:
        found = os.statvfs(path)
        return struct.pack("<5Q10I", found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree,
                           found.f_bsize, 255, found.f_frsize, *[0] * 7)
    if opcode == OPENDIR:
        return struct.pack("<QII", 0, 0, 0)
    if opcode == READDIR:
        _, offset, size = struct.unpack_from("<QQI", body)
        listed = b""
        for index, name in enumerate(sorted(os.listdir(path))[offset:], offset + 1):
            name = os.fsencode(name)
            item = struct.pack("<QQII", index, index, len(name), 0) + name
            item += b"\0" * (-len(item) % 8)
            if len(listed) + len(item) > size:
                break
            listed += item
        return listed
    if opcode in (FSYNC, RELEASEDIR):
        return b""
    raise OSError(errno.ENOSYS, "not needed so far")


device = os.open("/dev/fuse", os.O_RDWR)
data = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other"
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"passthrough", os.fsencode(options.at), b"fuse", 0, data.encode()) != 0:
    sys.exit(f"cannot mount: {os.strerror(ctypes.get_errno())}")
print("ready", flush=True)
while True:
    try:
        request = os.read(device, MAX_WRITE + 8192)
    except OSError as error:
        if error.errno in (errno.EINTR, errno.ENOENT):
            continue
        break  # unmounted
    _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
    if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
        continue
    try:
        reply, failed = answer(opcode, node, request[40:]), 0
    except OSError as error:
        reply, failed = b"", error.errno
    try:
        os.write(device, struct.pack("<IiQ", 16 + len(reply), -failed, unique) + reply)
    except OSError as error:
        if error.errno != errno.ENOENT:  # whoever asked was killed meanwhile
            raise
