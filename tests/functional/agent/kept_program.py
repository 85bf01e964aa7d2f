# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.
"""A program that has descriptors kept: the protocol without an agent.

It connects to the socket that it is given, says what it was handed, and obeys
a line at a time.
"""

import os
import signal
import socket
import sys

from nova_lazyimage.agent import keeper


def memory(text):
    descriptor = os.memfd_create('kept')
    os.write(descriptor, text.encode())
    return descriptor


def obey(word, rest, held):
    """Do what a line says; the answer."""
    if word == 'ready':
        keeper.notify('READY=1')
    elif word == 'loaded':
        keeper.notify(keeper.WAITS)
    elif word == 'give':
        pairs = (pair.split('=') for pair in rest.split())
        return str(held.give({name: memory(text) for name, text in pairs}))
    elif word == 'append':
        os.write(held.descriptors[rest], b'+')
    elif word == 'forget':
        held.forget(rest.split())
    elif word == 'end':
        os._exit(int(rest))
    return word


def main():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    held = keeper.Keeper(keeper.take_descriptors(), keeper.take_beside())
    contents = {
        name: os.pread(descriptor, 100, 0).decode()
        for name, descriptor in held.descriptors.items()
    }
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    with connection.makefile('rw') as stream:
        left = [name for name in os.environ if name.startswith('LISTEN_')]
        beside = ['beside'] if held.beside_predecessor else []
        print(
            os.getpid(), sorted(contents.items()), *left, *beside, file=stream
        )
        stream.flush()
        for line in stream:
            word, _, rest = line.strip().partition(' ')
            if word == 'wait':
                # As the agent: one signal is an end for good, one is not.
                print('waits', file=stream, flush=True)
                number = signal.sigwait({signal.SIGINT, signal.SIGHUP})
                os._exit(0 if number == signal.SIGINT else 75)
            print(obey(word, rest, held), file=stream, flush=True)


main()
