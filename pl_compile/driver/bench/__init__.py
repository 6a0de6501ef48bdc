"""How fast a bundle or a server is: what `plc bench` measures, as plain data for people to share.

texts       what fields are filled with
numbers     medians with their spread, percentiles
machine     processor, versions, memory and load of processes
bundle      a bundle, in this process
client      one request to a server, its answer piece by piece
load        many requests at once, from clients that wait or at a rate
server      a server under load
"""
