"""`[changeover]`: which product runs first, and which topic or register of the plant may call for another one."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from station.broker_settings import BrokerSettings
from station.messages import Name
from station.section import Section
from station.sensor_settings import BaseSensors, JsonPathText, ModbusRtuSensors, ModbusTcpSensors, Topic


class TopicOrders(BaseSensors):
    """`[changeover.mqtt]`: messages that name a product, or its number."""

    topic: Topic
    """The topic, without wildcards."""
    path: JsonPathText | None = None
    """Where the name or number stands in a JSON message: `order.product`. Without it the message itself is that."""
    qos: Literal[0, 1] = 1
    """Quality of service of the subscription."""
    accept_retained: bool = False
    """Take a retained message as an order. It comes again at each connection, also when another product was called for
    otherwise since then; so by default it is passed over."""
    broker: BrokerSettings | None = None
    """`[changeover.mqtt.broker]`, with the keys of `[broker]`; default: the station's own broker."""

    @model_validator(mode="after")
    def _a_broker_elsewhere(self) -> Self:
        if self.broker is not None and self.broker.embedded:
            raise ValueError("broker.embedded: that is the station's own; leave [changeover.mqtt.broker] out")
        return self


ModbusOrders = Annotated[ModbusTcpSensors | ModbusRtuSensors, Field(discriminator="kind")]


class ChangeoverSettings(Section):
    """`[changeover]`"""

    start: Name | None = None
    """Product that runs at the first start; default: the first table. Later starts go on with the one that ran last."""
    mqtt: TopicOrders | None = None
    """`[changeover.mqtt]`"""
    modbus: ModbusOrders | None = None
    """`[changeover.modbus]`: the keys of a source of readings of this kind, with one point: a product's number. Another
    number than before is an order, and so is the first that is read."""

    @model_validator(mode="after")
    def _one_register(self) -> Self:
        if self.modbus is not None and len(self.modbus.points) != 1:
            raise ValueError("modbus.points: give one point, the register that holds the product's number")
        return self
