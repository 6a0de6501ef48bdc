"""Write the data of the two quickstart tasks: `ticket` and `command`.

    python examples/quickstart/make_data.py --output examples/quickstart/data

`ticket` is routing with a closed set of labels. `message` is what a customer writes to a web shop,
`label` is the desk that answers it:

    billing     what is paid: prices, invoices, fees, refunds
    delivery    the way of a parcel: where, when, in which state
    technical   a device, the app or the website does not work, or how to use it
    account     the login, the password, the profile and the data in it

Many messages carry a word of another desk ("I paid for the kettle 9 days ago but it never came" is
delivery), so that looking for keywords does not solve the task.

`command` is free text. `request` is said to a home assistant, `command` is the same in a little
language of eight verbs. A command is its fixed words and values copied from the request as they
stand there, in the order of the template: "we are out of oat milk" -> "shopping add oat milk".

Where the variety comes from: a row is a *frame* (a sentence with slots) whose slots are filled from
tables, sometimes with an opener before it and a closer after it. Tickets also get lower case,
missing full stops and spelling mistakes.

What the held-out splits measure: of the frames of each label or command, and of each table of
fillers, a quarter is *unseen*: never used for a training row. (Rounded down, so a table of fewer
than four has none.) A row of `val` or `test` takes its frame from the unseen quarter with
probability 1/3, and then each of its fillers, independently, with probability 1/3. Both splits
share the unseen quarter. No text occurs twice in the data of a task.

The output depends on the tables and the seed alone: same bytes on every machine.
"""

import argparse
import hashlib
import json
import random
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

SEED = 2024
SPLIT_SIZES = {"train": 400, "val": 60, "test": 100}
UNSEEN_FRACTION = 4  # one in four frames and fillers is kept out of training
UNSEEN_SHARE = {"train": 0.0, "val": 1 / 3, "test": 1 / 3}  # of the draws of a split

OPENER_SHARE = 0.3
CLOSER_SHARE = 0.3
HASTY_SHARE = 0.25  # tickets in lower case, without the last full stop
TYPO_SHARE = 0.15

# Frames: one a line. Fillers: separated by commas.

TICKET_FRAMES = {
    "billing": """
        I was charged {amount} twice for the {product}.
        Why is there a second payment of {amount} on my {card}?
        My {card} shows {amount}, but the {product} was advertised for less.
        The {product} arrived on {date}, yet you billed me for two of them.
        Please send a VAT invoice for the {product} I bought on {date}.
        I returned the {product} {span} ago and still have no refund.
        When will the {amount} for the returned {product} be back on my {card}?
        The discount code {voucher} was not taken off my total.
        You took {amount} from my {card} after I cancelled the {plan}.
        The {plan} renewed on {date} and I never agreed to pay again.
        Can I pay for the {product} in instalments?
        The app works fine, but it took {amount} instead of the price shown.
        I logged in to download my receipt and the total is {amount} too high.
        Delivery was free on the site, so why did you add {amount} for shipping?
        {courier} was quick, but the invoice lists a second {product} I never ordered.
        My bank says you tried to collect {amount} on {date}.
        Could you change the company name on the invoice for the {product}?
        I need a receipt over {amount} for my tax return.
        There are two lines for the {plan} on this month's bill.
        The gift card worth {amount} was not counted towards the {product}.
        I was promised {amount} back for the late parcel and nothing was credited.
        The late fee of {amount} is not fair, I paid on {date}.
        How do I get the deposit for the {product} back?
        You refunded {amount}, but the {product} cost more than that.
        Your price match should have saved me {amount} on the {product}.
        I upgraded to the {plan} and now I pay for both.
        Are taxes included in the {amount} for the {product}?
        My bill went up by {amount} and nobody told me.
        The broken {gadget} went back {span} ago, where is my money?
        Please explain the charge of {amount} from {date}.
        The student discount for the {plan} is missing from my bill.
        Which reference do I use to pay for the {product} by bank transfer?
        Your email says payment overdue, but {amount} left my {card} on {date}.
        Can you split the {amount} between my {card} and a voucher?
        I was billed in dollars although my {card} is in euros.
        My {card} expired, how can I settle the {amount} still open?
        The cancelled order for the {product} was still debited on {date}.
        Who approved a payment of {amount} to your shop?
        The trial of the {plan} was free, so why do I see {amount}?
        The repair of my {gadget} was under warranty, but I got a bill for {amount}.
        I closed my account {span} ago and you still take {amount} a month.
        Does the voucher {voucher} lower the price of the {product}?
        My refund for the {product} is {amount} short.
        The invoice for the {product} has the wrong VAT number on it.
        The {product} got cheaper {span} ago, can I have the difference?
        After my password change you charged me for the {plan} a second time.
        The customs fee of {amount} should have been paid by you.
        Nobody has paid me back for the {gadget} that stopped working.
        How much is the {plan} per year if I pay up front?
        """,
    "delivery": """
        I paid for the {product} {span} ago but it never came.
        Where is my {product}? It should have been here on {date}.
        The tracking page has not moved since {date}.
        {courier} left the {product} {spot} and now it is gone.
        Can you send the {product} to {city} instead?
        My parcel is marked as delivered, but nobody here has it.
        The box was crushed and the {product} fell out on the way.
        I got somebody else's {product} instead of mine.
        When will the {product} be shipped?
        Please leave the {product} {spot} if I am out on {date}.
        {courier} cannot find my house, can you give them the flat number?
        Only one of the two parcels turned up on {date}.
        I waited at home on {date} and nobody rang.
        Could the {product} come before {date}?
        Do you ship the {product} to {city}?
        How long is the {product} on its way to {city}?
        The refund can wait, I just want to know where my {product} is.
        Your invoice came by email, the {product} itself did not come at all.
        The app shows my {product} in {city}, which is nowhere near me.
        The parcel went to my old address although I updated my profile {span} ago.
        I paid extra for express and the {product} has not even left {city}.
        {courier} wants a signature, can my neighbour sign for the {product}?
        Is it possible to collect the {product} from a shop in {city}?
        The pickup point in {city} says it never received the {product}.
        Which code opens the parcel locker where my {product} is?
        Please hold the {product} back until I return on {date}.
        The van drove past my house on {date} without stopping.
        My {product} has been stuck at customs for {span}.
        Two of the four boxes with the {product} are missing.
        It has been {span} since you posted the {product}.
        Can I choose an evening slot for the {product} on {date}?
        {courier} threw the {product} over the fence.
        My {product} was sent back to you because nobody was at home.
        You promised next day, and {span} later there is still no {product}.
        The tracking link opens fine, it just says waiting for {courier}.
        I logged in and my order is marked as sent since {date}, still nothing here.
        The {gadget} is here and works, the second box is still missing.
        My {card} was debited on {date}, so when does the {product} leave the warehouse?
        {courier} rang the wrong bell and took the {product} away again.
        What is the latest news on the {product} that was due on {date}?
        My neighbour got my {product} by mistake, please tell {courier}.
        Please stop {courier}, the {product} is going to the wrong city.
        How many days until the {product} reaches {city}?
        The box with my {product} stood in the rain all day.
        Could {courier} try again on {date}? I missed them today.
        I am moving to {city}, so the {product} has to go there.
        They say my {product} is {spot}, but I have looked everywhere.
        The invoice says two boxes, and {courier} brought one.
        """,
    "technical": """
        The app closes by itself as soon as I open the {feature}.
        My {gadget} has not switched on since {date}.
        The {gadget} keeps losing its wifi connection.
        I get error {code} whenever I tap the {feature}.
        The website stays blank in {browser}.
        After the last update the {gadget} makes a loud noise.
        How do I pair the {gadget} with my {device}?
        The {feature} has been broken for {span}.
        My {gadget} shows {code} and then restarts.
        The battery of the {gadget} is empty after an hour.
        I cannot install the app on my {device}.
        The pay button does nothing in {browser}.
        The invoice page crashes with {code} every time.
        The parcel map in the app freezes on my {device}.
        Bluetooth drops out when the {gadget} is in the next room.
        The screen of my {gadget} has been flickering since {date}.
        Will the {gadget} work with my {device}?
        How can I reset the {gadget} to factory settings?
        The sound of the {gadget} is gone after {span}.
        I log in fine, but the {feature} then freezes.
        The {gadget} came on time and in one piece, but it will not charge.
        The checkout spins forever in {browser} and then shows {code}.
        I paid {amount} for this {gadget} and it already overheats.
        The firmware update of my {gadget} stops half way.
        The {feature} is terribly slow on my {device}.
        My {device} cannot find the {gadget} any more.
        Which cable do I need to connect the {gadget}?
        The {gadget} beeps three times and nothing happens.
        Your site does not load at all in {browser}.
        The buttons on the {gadget} stopped reacting on {date}.
        The app says no internet although my wifi is fine.
        Notifications no longer show up on my {device}.
        The {feature} looks cut off on my {device}.
        My {gadget} forgets its settings every night.
        The manual does not explain what {code} on the {gadget} means.
        I keep getting {code} when I scan the label on the box.
        The remote of the {gadget} does not respond.
        Since the new version the {feature} shows an empty page.
        The video in the app stutters on my {device}.
        Can I use the {gadget} without the app?
        The refund form will not submit in {browser}, it just says {code}.
        The delivery calendar in the app jumps back to January.
        The new {gadget} gets hot and smells of plastic.
        The voice control of my {gadget} understands nothing.
        I changed the batteries twice and the {gadget} is still dead.
        The keyboard covers the password box on my {device}.
        """,
    "account": """
        I forgot my password and the reset email does not come.
        Please change my {detail} to the new one.
        How do I delete my profile and all my data?
        I have not been able to log in since {date}.
        Somebody else seems to use my login from {city}.
        My account was locked after three wrong passwords.
        Can two people use one login?
        I got married, please change my surname to {name}.
        I want to close my account on {date}.
        Where do I change my {detail}?
        The code for two step login goes to my old {device}.
        Can I get the user name {name} back?
        Please merge my two accounts, one is under {name}.
        Which {detail} do you have on file for me?
        I cannot log in to see my invoice for the {product}.
        My order is on the way, but I no longer get into my profile.
        Your app runs well, it just will not take my new password.
        I paid {amount} as a guest, can I move that order to my profile?
        How do I turn off two step login?
        My profile still shows my old {detail}.
        I signed up {span} ago and never got the confirmation link.
        Please remove my saved {card} from my profile.
        Please give {name} access to our company login.
        {name} left our company, please block that login.
        Someone changed the {detail} in my profile and it was not me.
        You say my email is unknown, but I signed up on {date}.
        Can I sign in with Google instead of a password?
        What data do you keep about me?
        I would like a copy of all my personal data.
        My {detail} has been wrong in my profile since {date}.
        How can I switch my login from private to business?
        I was signed out on {date} and now my password is refused.
        Please unlock my profile, my user name is {name}.
        I have two profiles, please keep the one with the newer {detail}.
        My daughter made a profile {span} ago, how do I remove it?
        Do I lose my profile if I cancel the {plan}?
        I have moved to {city}, where do I enter that in my profile?
        The parcel is fine, but my profile has my {detail} wrong.
        The security question is wrong and I am locked out.
        I got an email about a sign in from {city} that was not me.
        How do I pick a new user name?
        I no longer have the {detail} that I signed up with.
        The password I set on {date} is refused in {browser} and everywhere else.
        Could you register {name} as a second user?
        I lost my {device} and with it the codes for signing in.
        """,
}

TICKET_FILLERS = {
    "opener": """
        Hi!, Hello., Good morning., Hey there!, Hi team., Quick question:, Dear support:, Hmm.,
        Good evening., Help!, Hello again., Sorry to bother you.
        """,
    "closer": """
        Thanks., Please help., Any ideas?, I am quite annoyed., Many thanks!, Not happy.,
        Can you check?, What now?, Cheers., Very odd., Please hurry., Kind regards.
        """,
    "product": """
        rain jacket, kettle, office chair, bookshelf, carpet, tent, bicycle, suitcase, mirror,
        wool coat, frying pan, desk lamp, mattress, yoga mat, rucksack, puzzle, teapot, wardrobe,
        garden hose, ladder, toolbox, snow shovel, birthday cake, picnic basket, violin, skateboard,
        high chair, fish tank
        """,
    "gadget": """
        smart watch, router, coffee machine, robot vacuum, printer, speaker, camera, doorbell,
        game console, e-reader, projector, hearing aid, baby monitor, shaver, thermostat,
        electric toothbrush, drone, headset, toy robot, soundbar
        """,
    "amount": """
        £12, $40, 59 euros, £8.50, $129.99, €75, 20 pounds, $6, €310, £199, 35 dollars, €14.90,
        £64.20, $250, 18 euros, £1.99
        """,
    "date": """
        3 May, Monday, 14 June, Friday, 28 February, Tuesday, 1 April, Saturday, 9 October,
        Thursday, 22 November, Sunday, 30 August, Wednesday, 17 January, 6 July
        """,
    "span": """
        9 days, two weeks, a month, 3 days, ten days, five weeks, six months, a week, 12 days,
        three weeks, a fortnight, 40 days
        """,
    "card": """
        credit card, debit card, Visa, bank account, PayPal, company card, Amex card,
        current account, Mastercard, prepaid card
        """,
    "plan": """
        basic plan, family plan, yearly plan, student plan, music bundle, premium plan, team plan,
        gold membership, cloud storage, film pass
        """,
    "voucher": "SPRING10, WELCOME5, SUN20, THANKYOU, WINTER15, FRIEND25, BOOKS3, LUCKY7",
    "courier": """
        DHL, the courier, UPS, the postman, FedEx, the driver, Royal Mail, DPD, your delivery man,
        GLS, Evri, the van driver
        """,
    "spot": """
        on the porch, with a neighbour, behind the shed, by the bins, in the garage,
        at the front desk, under the bench, next to the gate, in the hallway, at the back door
        """,
    "city": """
        Oslo, Leeds, Madrid, Boston, Lyon, Dublin, Prague, Austin, Ghent, Lisbon, Turin, Denver,
        Cork, Hamburg, Perth, Krakow
        """,
    "feature": """
        search box, dark mode, wish list, photo gallery, size chart, product filter, help page,
        start page, price alarm, chat window, barcode scanner, product video
        """,
    "browser": "Firefox, Chrome, Safari, Edge, Opera, Brave, Vivaldi, the tablet browser",
    "device": """
        iPad, Android phone, laptop, iPhone, MacBook, tablet, Windows computer, work phone,
        Chromebook, Kindle
        """,
    "code": "E42, 503, X17, 0x80, F-09, 1099, ERR7, B12, 404, K3",
    "detail": """
        email address, phone number, surname, birthday, home address, first name, mobile number,
        company name, postcode, nickname
        """,
    "name": """
        Morgan, Novak, Chen, Okafor, Kelly, Rossi, Haddad, Murphy, Silva, Becker, Dubois, Yamada,
        Larsen, Costa, Gupta, Blake
        """,
}

COMMAND_FRAMES = {
    "lights {room} {switch}": """
        {ask} turn {switch} the lights in the {room}
        {ask} turn the {room} lights {switch}
        {ask} switch {switch} the {room} lights
        {ask} switch the light in the {room} {switch}
        the {room} lights should be {switch} now
        i want the lights {switch} in the {room}
        i am in the {place}, so turn {switch} the {room} lights
        lights {switch} in the {room} right now
        all the lights in the {room} go {switch}
        make sure the {room} lights are {switch}
        we are going out, put the {room} lights {switch}
        why are the {room} lights not {switch} yet
        it is getting late, {room} lights {switch}
        lights in the {room}, {switch} please
        """,
    "lights {room} {colour}": """
        {ask} make the {room} lights {colour}
        {ask} set the lights in the {room} to {colour}
        {ask} change the {room} lights to {colour}
        {colour} light in the {room} would be nice
        i would like {colour} lights in the {room}
        let us have {colour} light in the {room}
        turn the lamps in the {room} {colour}
        for the party, {colour} lights in the {room}
        give me {colour} lamps in the {room}
        """,
    "lights {room} dim": """
        {ask} dim the lights in the {room}
        {ask} dim the {room} lights a bit
        it is too bright in the {room}, dim it
        the {room} lights are too strong, dim them
        we are watching a film, dim the {room} lamps
        i would like dim light in the {room}
        make the light in the {room} dim
        i have a headache, so dim the {room} lights
        """,
    "timer {number} {unit}": """
        {ask} set a timer for {number} {unit}
        {ask} start a timer of {number} {unit}
        {ask} count down {number} {unit}
        give me a timer for {number} {unit}
        i need a countdown of {number} {unit}
        let me know when {number} {unit} are over
        tell me once {number} {unit} have passed
        {number} {unit} on the clock, starting now
        ring when {number} {unit} are up
        start counting, i have {number} {unit} left
        timer please, {number} {unit}
        """,
    "alarm {time}": """
        {ask} wake me up at {time}
        {ask} set an alarm for {time}
        i have to get up at {time}
        get me out of bed at {time}
        i must not sleep past {time}
        the alarm should go off at {time}
        make sure i am awake at {time}
        my day starts at {time}, wake me then
        """,
    "alarm {day} {time}": """
        {ask} wake me on {day} at {time}
        {ask} set an alarm for {time} on {day}
        i have an early flight on {day}, wake me at {time}
        on {day} i get up at {time}
        {day} is a work day, alarm at {time}
        my train leaves on {day}, get me up at {time}
        on {day} the alarm should ring at {time}
        at {time} on {day} i need to be awake
        i need to be up by {time} this {day}
        """,
    "thermostat {room} {degrees}": """
        {ask} set the {room} to {degrees} degrees
        {ask} heat the {room} to {degrees} degrees
        {ask} turn the heating in the {room} to {degrees}
        {ask} bring the {room} up to {degrees} degrees
        i am freezing, make the {room} {degrees} degrees
        i want {degrees} degrees in the {room}
        the {room} should be at {degrees} degrees
        it is cold in the {room}, {degrees} would be good
        keep the {room} at {degrees} degrees
        cool the {room} down to {degrees} degrees
        change the temperature in the {room} to {degrees}
        heating to {degrees} in the {room}, i am cold
        my feet are cold, put the {room} on {degrees}
        guests are coming, warm the {room} to {degrees}
        """,
    "remind {day} {chore}": """
        {ask} remind me on {day} to {chore}
        {ask} remind me to {chore} on {day}
        do not let me forget to {chore} on {day}
        on {day} i have to {chore}, remind me
        i need to {chore} on {day}, make a note
        {day} i must {chore}, do not let me forget
        set a reminder for {day} to {chore}
        i always forget to {chore}, nudge me on {day}
        give me a nudge on {day} to {chore}
        this {day} i really need to {chore}
        it is important to {chore} on {day}
        note for {day}, i have to {chore}
        """,
    "shopping add {item}": """
        {ask} add {item} to the shopping list
        {ask} put {item} on the list
        we are out of {item}, put it on the list
        we need {item} from the shop
        i have to buy {item} next time
        there is no {item} left in the house
        the last of the {item} is gone, write it down
        {item} should be on the shopping list
        next time we shop we need {item}
        somebody finished the {item}, we need more
        write {item} on the shopping list
        do not let me forget to buy {item}
        i used up the {item}, get some more
        i want to cook and we need {item}
        """,
    "music {room} {genre}": """
        {ask} play {genre} in the {room}
        {ask} put on some {genre} in the {room}
        {ask} start {genre} on the {room} speaker
        i feel like {genre} in the {room}
        some {genre} in the {room} would be nice
        let me hear {genre} in the {room}
        the {room} needs some {genre}
        how about {genre} in the {room} tonight
        we want to dance in the {room}, play {genre}
        i am cleaning the {room}, play some {genre}
        it is too quiet in the {room}, {genre} would help
        fill the {room} with {genre}
        """,
    "music {room} off": """
        {ask} stop the music in the {room}
        {ask} turn off the music in the {room}
        no more music in the {room}
        it is too loud in the {room}, stop the music
        silence the speaker in the {room}
        i am on the phone, stop the {room} speaker
        the baby sleeps, no music in the {room}
        the {room} speaker should stop now
        """,
    "message {name} {news}": """
        {ask} tell {name} that {news}
        {ask} text {name} that {news}
        {ask} send {name} a message saying {news}
        {ask} let {name} know that {news}
        {ask} write to {name} that {news}
        message {name} and say {news}
        send a text to {name}, {news}
        drop {name} a line that {news}
        {name} should know that {news}, send a message
        i need {name} to know that {news}
        say to {name} that {news}
        a message for {name}, {news}
        pass on to {name} that {news}
        {name} is waiting for a text, {news}
        tell {name} for me that {news}
        i cannot reach {name}, text that {news}
        i am in the {place}, so tell {name} that {news}
        """,
}

COMMAND_FILLERS = {
    "opener": "hey, ok, hi, right, so, hello, listen, well, now, hi there, hey house, quick one",
    "closer": "thanks, thank you, cheers, if you can, ta, if possible, much appreciated, sorry",
    "ask": """
        can you, could you, please, would you, i want you to, go ahead and, kindly, i need you to,
        can you please, i would like you to, do me a favour and,
        time to
        """,
    "room": """
        kitchen, bedroom, living room, hallway, bathroom, office, garage, attic, nursery, basement,
        dining room, guest room, study, playroom, workshop, library, pantry, laundry room, cellar,
        loft, den, lounge, gym, veranda
        """,
    "place": "garden, car, bath, shower, shed, yard, lift, woods",
    "switch": "on, off",
    "colour": """
        red, blue, green, purple, orange, pink, yellow, white, amber, teal, violet, gold, turquoise,
        cyan, magenta, lilac
        """,
    "number": """
        2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 27, 28, 30, 32, 33, 35, 36, 38, 40, 42, 44, 45,
        48, 50, 54, 55, 60, 75, 90
        """,
    "unit": "minutes, seconds, hours",
    "time": """
        4:30, 5:00, 5:15, 5:45, 6:00, 6:10, 6:20, 6:30, 6:40, 6:45, 7:00, 7:05, 7:15, 7:25, 7:30,
        7:50, 8:00, 8:10, 8:15, 8:30, 8:45, 9:00, 9:20, 9:45
        """,
    "day": "monday, tuesday, wednesday, thursday, friday, saturday, sunday",
    "degrees": "15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26",
    "chore": """
        call the dentist, water the plants, pay the rent, feed the cat, book a haircut,
        wash the car, post the letter, return the books, empty the bins, iron the shirts,
        clean the oven, mow the lawn, renew my passport, charge the bike, fix the tap,
        visit grandma, buy stamps, walk the dog, vacuum the stairs, defrost the freezer,
        order firewood, sweep the chimney, cancel the gym, sign the contract
        """,
    "item": """
        oat milk, butter, brown sugar, olive oil, flour, coffee, green tea, toothpaste, cat food,
        honey, cheese, rye bread, dish soap, orange juice, yoghurt, salt, peanut butter,
        tomato paste, washing powder, soy sauce, cream, ginger, garlic, basil, spinach,
        toilet paper, shampoo, vanilla ice cream
        """,
    "genre": """
        jazz, rock, disco, blues, folk, techno, reggae, opera, soul, swing, ambient, salsa,
        bossa nova, hip hop, country, metal, funk, gospel, samba, flamenco, punk, tango, polka,
        chamber music
        """,
    "name": """
        anna, mum, tom, dad, priya, lukas, maria, grandpa, yusuf, ella, ben, sofia, noah, rosa,
        felix, mei, oscar, ingrid, hugo, zara
        """,
    "news": """
        i am late, dinner is ready, the bus is late, i found the keys, we won, the train is full,
        lunch is cancelled, i am home, it is snowing, the meeting moved, i passed, the cake is gone,
        we are lost, school is closed, i missed you, the parcel came, my phone died,
        the door is open, traffic is bad, i sold it
        """,
}

T = TypeVar("T")


@dataclass(frozen=True)
class Frame:
    """A sentence with `{slots}`, and the label or command it stands for."""

    text: str
    answer: str


@dataclass(frozen=True)
class Pool(Generic[T]):
    """What may be drawn: `known` in every split, `unseen` in val and test only."""

    known: tuple[T, ...]
    unseen: tuple[T, ...]

    def draw(self, rng: random.Random, unseen_share: float) -> T:
        """Draw one entry, an unseen one (if there is any) with probability `unseen_share`."""
        takes_unseen = rng.random() < unseen_share
        return pick(rng, self.unseen if takes_unseen and self.unseen else self.known)


@dataclass(frozen=True)
class Task:
    """All that the rows of one task are made of.

    Args:
        name: the `taskname` of its rows.
        keys: the fields of the text and of its answer.
        n_words: fewest and most words of the text.
        frames: the sentences.
        fillers: slot name to what may fill it.
        opening: put before the frame of some rows.
        closing: put after the frame of some rows.
        finish: turns the filled sentence into the text as it was typed or said.
    """

    name: str
    keys: tuple[str, str]
    n_words: tuple[int, int]
    frames: Pool[Frame]
    fillers: Mapping[str, Pool[str]]
    opening: str
    closing: str
    finish: Callable[[random.Random, str], str]


def pick(rng: random.Random, entries: Sequence[T]) -> T:
    """Draw one entry, all equally likely.

    Not `rng.choice`: of all methods Python promises only `random()` to stay the same for a seed.
    """
    return entries[int(rng.random() * len(entries))]


def split_pool(entries: Iterable[str]) -> Pool[str]:
    """Set a fixed quarter of the entries aside, chosen by the hash of their text.

    By hash, not by draw: the choice then depends neither on the seed nor on the order of a table.
    """
    ranked = sorted(entries, key=lambda entry: hashlib.sha256(entry.encode()).hexdigest())
    n_unseen = len(ranked) // UNSEEN_FRACTION
    return Pool(known=tuple(ranked[n_unseen:]), unseen=tuple(ranked[:n_unseen]))


def frame_pool(table: Mapping[str, str]) -> Pool[Frame]:
    """Read a table of frames, one a line; the quarter is set aside answer by answer."""
    known: list[Frame] = []
    unseen: list[Frame] = []
    for answer, lines in table.items():
        pool = split_pool(line.strip() for line in lines.strip().splitlines())
        known += [Frame(text, answer) for text in pool.known]
        unseen += [Frame(text, answer) for text in pool.unseen]
    return Pool(tuple(known), tuple(unseen))


def filler_pools(table: Mapping[str, str]) -> dict[str, Pool[str]]:
    """Read a table of fillers, separated by commas."""
    return {
        slot: split_pool(filler.strip() for filler in fillers.split(","))
        for slot, fillers in table.items()
    }


def misspell(rng: random.Random, text: str) -> str:
    """Swap or drop a letter inside one of the longer words, the first letter stays."""
    words = list(re.finditer(r"[a-z]{5,}", text))
    if not words:
        return text
    word = pick(rng, words)
    at = pick(rng, range(word.start() + 1, word.end() - 1))
    swaps = rng.random() < 0.5
    return text[:at] + (text[at + 1] + text[at] if swaps else text[at + 1]) + text[at + 2 :]


def finish_message(rng: random.Random, text: str) -> str:
    """Type a ticket as customers do: some in haste, some with a mistake."""
    text = text[0].upper() + text[1:]
    if rng.random() < HASTY_SHARE:
        text = text.lower().rstrip(".?!")
    if rng.random() < TYPO_SHARE:
        text = misspell(rng, text)
    return text


def finish_request(_rng: random.Random, text: str) -> str:
    """Leave a request as it is: lower case, like the transcript of speech."""
    return text


def make_row(rng: random.Random, task: Task, unseen_share: float) -> dict[str, str]:
    """Draw a frame, maybe an opener and a closer, and a filler for each slot."""
    frame = task.frames.draw(rng, unseen_share)
    opening = task.opening if rng.random() < OPENER_SHARE else ""
    closing = task.closing if rng.random() < CLOSER_SHARE else ""
    sentence = opening + frame.text + closing
    slots = [slot for _, slot, _, _ in string.Formatter().parse(sentence) if slot]
    values = {slot: task.fillers[slot].draw(rng, unseen_share) for slot in slots}
    text_key, answer_key = task.keys
    return {
        "taskname": task.name,
        text_key: task.finish(rng, sentence.format_map(values)),
        answer_key: frame.answer.format_map(values),
    }


def make_split(task: Task, split: str, seed: int, taken: set[str]) -> list[dict[str, str]]:
    """Draw the rows of one split.

    Args:
        task: what the rows are made of.
        split: `train`, `val` or `test`.
        seed: seed of all files; each file has its own stream of draws.
        taken: lower-case texts that are in use; those of the new rows are added.
    """
    rng = random.Random(f"{seed}/{task.name}/{split}")
    fewest, most = task.n_words
    rows: list[dict[str, str]] = []
    while len(rows) < SPLIT_SIZES[split]:
        row = make_row(rng, task, UNSEEN_SHARE[split])
        text = row[task.keys[0]]
        if text.lower() not in taken and fewest <= len(text.split()) <= most:
            taken.add(text.lower())
            rows.append(row)
    return rows


def write_rows(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Write one JSON object per line: UTF-8, LF, keys in the order of the rows."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


TASKS = (
    Task(
        name="ticket",
        keys=("message", "label"),
        n_words=(6, 22),
        frames=frame_pool(TICKET_FRAMES),
        fillers=filler_pools(TICKET_FILLERS),
        opening="{opener} ",
        closing=" {closer}",
        finish=finish_message,
    ),
    Task(
        name="command",
        keys=("request", "command"),
        n_words=(5, 18),
        frames=frame_pool(COMMAND_FRAMES),
        fillers=filler_pools(COMMAND_FILLERS),
        opening="{opener}, ",
        closing=", {closer}",
        finish=finish_request,
    ),
)


def main() -> None:
    """Write every split of every task into the output folder."""
    parser = argparse.ArgumentParser(description="Write the data of the quickstart tasks.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the JSONL files")
    parser.add_argument("--seed", type=int, default=SEED, help="default: %(default)s")
    args = parser.parse_args()

    args.output.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        taken: set[str] = set()
        for split in SPLIT_SIZES:
            rows = make_split(task, split, args.seed, taken)
            path = args.output / f"{task.name}_{split}.jsonl"
            write_rows(path, rows)
            print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
