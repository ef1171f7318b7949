"""An SFTP server of one user in one folder: `sftp_server.py PORT FOLDER`. Serves FOLDER/data."""

import asyncio
import os
import sys
from pathlib import Path

import asyncssh

USERNAME, PASSWORD = "mail", "correct horse"


class Login(asyncssh.SSHServer):
    """Lets one user in."""

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == (USERNAME, PASSWORD)


class Files(asyncssh.SFTPServer):
    """A folder as the root. As OpenSSH's server does, a plain rename replaces nothing."""

    def rename(self, oldpath: bytes, newpath: bytes) -> None:
        target = self.map_path(newpath)
        if os.path.lexists(target):
            raise asyncssh.SFTPFailure("it stands there already")
        Path(os.fsdecode(self.map_path(oldpath))).rename(os.fsdecode(target))


def host_key(folder: Path) -> asyncssh.SSHKey:
    """The same at each start."""
    path = folder / "host_key"
    if not path.exists():
        key = asyncssh.generate_private_key("ssh-ed25519")
        path.with_suffix(".pub").write_bytes(key.export_public_key())
        path.write_bytes(key.export_private_key())
    return asyncssh.read_private_key(path)


async def main(port: int, folder: Path) -> None:
    """Serves until it is ended."""
    root = str(folder / "data").encode()
    server = await asyncssh.listen(
        "127.0.0.1",
        port,
        server_host_keys=[host_key(folder)],
        server_factory=Login,
        sftp_factory=lambda channel: Files(channel, chroot=root),
        allow_scp=False,
    )
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
