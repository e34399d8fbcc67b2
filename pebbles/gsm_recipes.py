"""How to solve each gsm_symbolic template: steps over the variables of the item.

The key is a variable that only this template has. A step is ``name = operand operator operand ...`` worked from left
to right; an operand is an earlier step, a variable (``.0`` picks from a list, ``.all`` takes it whole as a sum) or a
number. ``/`` drops the remainder, ``@n`` rewrites a decimal in (rounded) units of 1/n and ``#n`` turns such units back.
"""

from __future__ import annotations

RECIPES: dict[str, str] = {
    "batch_size": (
        "peeling=total_amount/peel_rate; batches=total_amount/batch_size; cooking=batches*time_per_batch; "
        "total=cooking+peeling"
    ),
    "bouncy_balls": "known=building_blocks+stuffed_animals+stacking_rings; balls=total_toys-known",
    "group1": (
        "first=total_students*percent_group1/100; rest=total_students-first; others=rest*percent_group23/100; "
        "leaving=first+others"
    ),
    "current_penpals": (
        "friends=initial_penpals-lost_penpals; letters=friends*letters_per_week; pages=letters*pages_per_letter; "
        "minutes=pages*minutes_per_page; hours=minutes/60"
    ),
    "num_jars": "items=num_jars*per_jar; pans=items/per_pan",
    "celebrity_type": "have=signatures1+signatures2; need=goal-have",
    "n_boys": "boys=n_girls*multiplier; kids=n_girls+boys",
    "initial_plants": (
        "before=num_ledges*plants_per_ledge; now=before+plants_received; given=num_ledges*plants_to_give; "
        "left=now-given"
    ),
    "drink": "ratio=sugar_ratio+water_ratio; share=total_items/ratio; sugar=share*sugar_ratio",
    "bill_value": (
        "money=num_bills*bill_value; first=num_items1*price1; second=num_items2*price2; spent=first+second; "
        "left=money-spent"
    ),
    "current_age": "future=age1*mult; now=future-years",
    "bought_amount": (
        "more=initial_amount*multiplier; home=more+initial_amount; new=bought_amount-difference; "
        "bought=new+bought_amount; total=home+bought"
    ),
    "game1": "first=time1*num1; second=time2*num2; total=first+second",
    "length1": "first=length1/speed1; second=length2/speed2; longer=first-second",
    "combined_time": "both=time1+time2; goal=both*multiplier",
    "discount": (
        "shorts=price1+price2; sneakers=price3/2; headbands=price4-discount; total=price1+shorts+sneakers+headbands"
    ),
    "base_friends": "base=charlie_friends/mult1; friends=base*mult2",
    "daily_patients": (
        "occupied=total_capacity*initial_fraction; free=total_capacity-occupied; weekly=daily_patients*7; "
        "admitted=weekly*period_weeks; left=free-admitted"
    ),
    "bonus": "part=score1*fraction; second=part+bonus; total=score1+second",
    "fourth_interval": (
        "second=initial_kernels*multiplier_2; third=initial_kernels*multiplier_3; fourth=third/2; heat=fourth/4; "
        "total=initial_kernels+second+third+fourth+heat"
    ),
    "capacity_per_tray": "places=capacity_per_tray*num_trays; left=total_items-places",
    "bed_length": (
        "bed=bed_length@100; each=plant_spacing@100; plants=bed/each; buy=plants-owned_plants; cost=buy*cost_per_plant"
    ),
    "brokerage_amount": (
        "broker=price*brokerage_fee/100; transfer=price*transfer_fee/100; total=price+broker+transfer; "
        "more=total-budget"
    ),
    "fee": "lost=hourly_rate*hours; more=lost-fee",
    "comet_name": "second=relative_age*multiple; first=second-orbit_period",
    "calories_left": "left=total_target-consumed; parts=left/calories; each=size/servings; amount=parts*each",
    "ball_type": "first=total_balls*fraction_first; second=first*fraction_second",
    "apartments_per_complex": (
        "first=first_complexes*apartments_per_complex; more=first*percent_increase/100; last=first+more; "
        "all=first+last; visits=all*collections_per_week; rate=rate_per_apartment@100; cents=visits*rate; "
        "money=cents#100"
    ),
    "base_price": (
        "percent=100+percent_increase; cents=base_price*percent; week=usage_per_day*7; bill=cents*week/100; "
        "total=bill+extra_price"
    ),
    "puppies1": "all=puppies1+puppies2; spotted=spotted1+spotted2; hundred=spotted*100; percent=hundred/all",
    "group_type": "dance=hobby2_count*2; left=total_students-hobby1_count-hobby2_count-dance",
    "first_person_slices": (
        "second=first_person_slices+second_person_extra; third=second+third_person_extra; "
        "total=first_person_slices+second+third"
    ),
    "base_rate": "fast=base_rate*multiplier; daily=fast+base_rate; weekly=daily*7",
    "friends_found": "twins=items_per_twin*2; hidden=total_items-twins; friends=hidden-unfound_items",
    "easy_correct": (
        "easy=total_questions*easy_percent/100; other=total_questions-easy; right=easy*easy_correct_percent/100; "
        "half=other/2; points=right+half"
    ),
    "child_type": "child=skeins_per_item.all; total=child*count",
    "absent_boys": "boys=total_students-num_girls; there=boys-absent_boys",
    "c1": "more=n1*p/100; second=n1+more; third=n1+second; total=third+third",
    "covered_amount": "school=total_cost*fraction; have=school+current_amount; need=total_cost-have",
    "fee1_amount": (
        "first=price*fee1_percent/100; second=price*fee2_percent/100; paid=first+second+loan; left=price-paid"
    ),
    "first_amount": "friend=first_amount-difference; both=first_amount+friend",
    "colors": (
        "first=quantities.0*prices.0; second=quantities.1*prices.1; third=quantities.2*prices.2; "
        "total=first+second+third"
    ),
    "husband_package": "all=remaining+used_items; package=all-husband_package",
    "fruit1": (
        "left=initial_amount1-spilled_amount; first=left*water_fraction1; second=initial_amount2*water_fraction2;"
        " total=first+second"
    ),
    "item1_cost": (
        "cents=item1_cost@100; first=items1_count*cents/100; more=item2_cost@100; second=items2_count*more/100; "
        "total=first+second+paper_cost"
    ),
    "total1": "first=n1*price1; second=n2*price2; more=first-second",
    "num_item1": (
        "left=100-percent_change; spent=total_spent*left; first=num_item1*price1; rest=spent-first; second=rest/price2"
    ),
    "half_puzzle1": "half=puzzle1_pieces/2; total=half+puzzle2_pieces",
    "activity1": "ride=cost2*times; person=tokens+cost1+ride; people=budget/person; friends=people-1",
    "alphabet_count": "full=alphabet_count*times_written; part=alphabet_count*fraction; once=full+part; total=once*2",
    "numbers_above": "above=sides-target; hundred=above*100; chance=hundred/sides; two=50*50/100; more=chance-two",
    "library_time": "first=total_time-library_time; left=first-station_time",
    "frac": "part=n*frac; total=part+n",
    "flavor1": "known=n1+n2; left=total-known",
    "soccer_boys": "second=tennis_players*2; third=soccer_boys+soccer_girls; total=tennis_players+second+third",
    "liquid": "drink=volume*num_containers; energy=drink*calories",
    "distance_per_interval": "intervals=total_distance/distance_per_interval; minutes=intervals*time_per_interval",
    "beach_distance": (
        "minutes=sidewalk_distance*beach_time; rate=beach_distance*speed_multiplier; sidewalk=minutes/rate; "
        "total=beach_time+sidewalk"
    ),
    "num_slices": "second=slices_per_day*multiplier; both=slices_per_day+second; days=num_slices/both",
    "days_first": (
        "first=eggs_per_day_first*days_first; second=eggs_per_day_second*days_second; all=first+second; dozens=all/12"
    ),
    "hour1": (
        "total=total_hours@60; first=hour1*2; last=hour3*2; hours=first+hour2+last; minutes=hours*60; left=total-"
        "minutes-min2; episodes=left/min1"
    ),
    "day1_amount": "both=day1_amount+day2_amount; third=day1_amount*multiplier; total=both+third",
    "days": (
        "first=initial_infected*infection_rate; one=initial_infected+first; second=one*infection_rate; "
        "two=one+second; third=two*infection_rate; three=two+third"
    ),
    "document": "done=total_pages*fraction; left=total_pages-done",
    "after_finding": "left=initial_count-dropped; found=left+found_count; final=found-fake_count",
    "cost3": "first=n1*p1; second=n2*p2; third=n3*p3; total=first+second+third",
    "color3": "second=n1*mult; left=total-n1-second",
    "apple_pie_day2": (
        "more=gingerbread_day1+gingerbread_increase; cakes=gingerbread_day1+more; first=cakes*gingerbread_price; "
        "fewer=apple_pie_day2-apple_pie_difference; pies=apple_pie_day2+fewer; second=pies*apple_pie_price; "
        "total=first+second"
    ),
    "frac1": "first=n1*frac1; second=n2*mult1; total=first+second",
    "age2": "second=age1+age_diff; sum=second+age1; average=sum/2",
    "dark_color1_spools": (
        "first=light_color1_spools+dark_color1_spools; total=light_color2_spools+dark_color2_spools+first; "
        "hundred=first*100; percent=hundred/total"
    ),
    "days_per_month": "days=days_per_week*weeks_per_month; month=pay_per_day*days; year=month*12",
    "no_response": "none=num_emails*no_response_percent/100; daily=num_emails-none; week=daily*workdays",
    "amount1": "twice=total_fence-difference; left=twice/2",
    "distance": (
        "times=time_cold*multiplier; warm=times+extra_time; cold=time_cold*distance; hot=warm*distance; longer=hot-cold"
    ),
    "length": "length=length*per_unit; width=area/length; sum=width+length; around=sum*2",
    "faculty_seats": "seats=graduate_seats+faculty_seats; rest=total_seats-seats; tickets=rest/graduate_seats",
    "found_first": (
        "eggs=num_dozen*12; second=found_first*multiplier; third=second-less_amount; fourth=third*fraction; "
        "found=found_first+second+third+fourth; left=eggs-found"
    ),
    "density": "field=density*field_size; times=12/months_per_harvest; year=field*times",
    "original_prices": (
        "first=original_prices.0@1; second=original_prices.1@1; third=original_prices.2@1; "
        "one=quantities.0*first; two=quantities.1*second; three=quantities.2*third; total=one+two+three"
    ),
    "creature": "second=initial_kills*fraction1; third=second*multiplier; fourth=third*fraction2",
    "decrease_pct": (
        "value=num_shares*price_per_share; gain=value*increase_pct/100; first=value+gain; "
        "loss=first*decrease_pct/100; final=first-loss"
    ),
    "daily_servings1": "daily=daily_servings1+daily_servings2+daily_servings3; total=daily*days",
    "animal1": "twice=n1*2; each=twice-n2; second=each*k2; first=n1*k1; total=second+first",
    "quantity": "money=initial_amount@100; price=unit_price@100; cost=price*quantity; cents=money-cost; left=cents/100",
}
