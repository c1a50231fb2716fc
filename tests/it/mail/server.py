"""A mail server for trials: aiosmtpd with STARTTLS or TLS and a password.

Each mail that is taken is written as one JSON file, parsed by Python's own parser.
"""
import argparse, asyncio, email, email.policy, json, os, ssl, sys, time

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

arguments = argparse.ArgumentParser()
arguments.add_argument("--port", type=int, default=0)
arguments.add_argument("--directory", required=True)
arguments.add_argument("--certificate")
arguments.add_argument("--key")
arguments.add_argument("--implicit", action="store_true", help="TLS from the first byte")
arguments.add_argument("--user")
arguments.add_argument("--password")
arguments.add_argument("--put-off", type=int, default=0, help="so many recipients are put off with 451")
arguments.add_argument("--refuse", help="this recipient is refused with 550")
arguments.add_argument("--hold", help="a mail is kept but not answered while this file exists")
options = arguments.parse_args()
count = 0


class Handler:
    put_off = options.put_off

    async def handle_RCPT(self, server, session, envelope, address, rcpt_options):
        if self.put_off > 0:
            self.put_off -= 1
            return "451 4.7.1 greylisted, come back later"
        if options.refuse and address.lower() == options.refuse.lower():
            return f"550 5.1.1 <{address}>: no such user here"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 ok"

    async def handle_DATA(self, server, session, envelope):
        global count
        count += 1
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        part = lambda kind: (mail.get_body((kind,)) or mail).get_content()
        kept = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "headers": {name.lower(): str(value) for name, value in mail.items()},
            "type": mail.get_content_type(),
            "text": part("plain"),
            "html": part("html"),
            "secure": session.ssl is not None or options.implicit,
            "user": session.auth_data.decode() if session.auth_data else None,
        }
        path = os.path.join(options.directory, f"{count:04}-{os.getpid()}.json")
        with open(path + ".part", "w") as file:
            json.dump(kept, file)
        os.rename(path + ".part", path)
        while options.hold and os.path.exists(options.hold):
            await asyncio.sleep(0.05)
        return "250 2.0.0 taken"


def login(server, session, envelope, mechanism, data):
    if not isinstance(data, LoginPassword):
        return AuthResult(success=False, handled=False)
    fits = data.login.decode() == options.user and data.password.decode() == options.password
    return AuthResult(success=fits, handled=False, auth_data=data.login)


async def main():
    context = None
    if options.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.certificate, options.key)
    starttls = context if context and not options.implicit else None
    handler = Handler()

    def protocol():
        return SMTP(
            handler,
            hostname="localhost",
            enable_SMTPUTF8=True,
            tls_context=starttls,
            require_starttls=starttls is not None,
            authenticator=login if options.user else None,
            auth_required=options.user is not None,
            # Where TLS is from the first byte, the library does not know of it.
            auth_require_tls=starttls is not None,
        )

    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        protocol, "127.0.0.1", options.port, ssl=context if options.implicit else None
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
